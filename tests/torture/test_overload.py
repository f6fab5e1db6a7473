"""A server that is asked for more than it can do, and one whose clients hardly read or write.

`pytest -m torture tests/torture/test_overload.py`; seven minutes. The load is made on the same cores as the answers.
"""

import asyncio
import gc
import json
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import truediv
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import pytest
import uvloop

from benchmarks.load import (
    Answer,
    Arrivals,
    Connection,
    evenly,
    generate,
    keep_asking,
    percentile,
    processor_seconds,
)
from prefix_store.tenants import Tenant
from tests.torture.processes import ServerProcess, admit, launcher, upload
from tests.torture.slow_clients import begin_every_second, drip_headers, read_slowly

pytestmark = [pytest.mark.torture, pytest.mark.alone, pytest.mark.timeout(900)]

Endless = Coroutine[Any, Any, None]
T = TypeVar("T")

# In turns, since the machine may be a third faster in one of them than in the next.
NUM_TURNS, TURN_SECONDS, SETTLING_SECONDS = 6, 12, 8
# All that one tenant may have on 64 slots, running and waiting: more would be refused.
NUM_AT_ONCE = 64 + 2 * 64
# Of different lengths, so that rows do not end all at once; as many of each in any stretch; and in no order, so that
# those let in, every tenth say, are not all of one length. The mean is 64.
LENGTHS, DRAW = (48, 56, 64, 72, 80), random.Random(0)
NEW_TOKENS = [num for _ in range(200) for num in DRAW.sample(LENGTHS, len(LENGTHS))]
MAX_GROWTH = 20e6

NUM_SLOW_HEADERS = 500
ROUND_SECONDS, NUM_ROUNDS = 30, 2
OTHERS_PER_SECOND = 10


@pytest.fixture(autouse=True)
def _no_pauses_of_our_own() -> Iterator[None]:
    """To look through all that pytest has loaded takes this process a quarter of a second, in which nothing is read."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def on_other_machines() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """Runs a load in a thread that gets what the server leaves of the cores: that of other machines takes none."""
    with ThreadPoolExecutor(1, initializer=os.nice, initargs=(19,)) as thread:
        yield lambda load: thread.submit(uvloop.run, load).result()


async def goodput_at_capacity(server: ServerProcess, requests: Sequence[bytes]) -> tuple[float, list[Answer]]:
    """Requests answered in a second where as many wait as may, and all answers."""
    started_at = time.monotonic() + SETTLING_SECONDS
    answers = await keep_asking(server.port, requests, NUM_AT_ONCE, SETTLING_SECONDS + TURN_SECONDS)
    return num_served(answers, started_at) / TURN_SECONDS, answers


async def goodput(server: ServerProcess, requests: Sequence[bytes], per_second: float) -> tuple[float, list[Answer]]:
    """Requests answered in full in a second, after the first moments, and all answers."""
    arrivals = Arrivals(server.port)
    started_at = time.monotonic() + SETTLING_SECONDS
    await arrivals.ask(requests, evenly(per_second, SETTLING_SECONDS + TURN_SECONDS))
    answers = await arrivals.finish()
    return num_served(answers, started_at) / TURN_SECONDS, answers


def num_served(answers: Iterable[Answer], started_at: float) -> int:
    """In the seconds of a turn that count."""
    return sum(answer.status == 200 and 0 <= answer.ended_at - started_at <= TURN_SECONDS for answer in answers)


def waits_of_refusals(log: Path) -> list[float]:
    """In milliseconds, as the server counts: from the last byte of a request's head read to its answer written."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["ms"] for event in events if event["event"] == "request" and event["status"] == 429]


def test_ten_times_the_load_costs_little_goodput_and_is_refused_at_once(
    tmp_path: Path, report: dict[str, float]
) -> None:
    (key,) = admit(tmp_path, Tenant(name="acme")).values()
    at_capacity, overloaded, load_seconds, memory = [], [], 0.0, 0
    answered: list[Answer] = []
    answers: list[Answer] = []
    with launcher(tmp_path) as launch:
        server = launch()
        upload(server, key, ["task"])
        requests = [generate("task", num_new_tokens=num, key=key) for num in NEW_TOKENS]
        with on_other_machines() as run:
            for _ in range(NUM_TURNS):
                once, answers_of_turn = run(goodput_at_capacity(server, requests))
                at_capacity.append(once)
                answered += answers_of_turn
                memory = memory or server.resources.memory  # before the first overload
                with processor_seconds() as spent:
                    ten_times, answers_of_turn = run(goodput(server, requests, 10 * once))
                overloaded.append(ten_times)
                answers += answers_of_turn
                load_seconds += spent[0]
            growth = server.resources.memory - memory
        assert server.end() == 0
    at_server = waits_of_refusals(tmp_path / "log")
    waits = [answer.wait * 1000 for answer in answers if answer.status == 429]
    ratio = sum(overloaded) / sum(at_capacity)
    report["overload_requests_per_second"] = round(10 * mean(at_capacity), 1)
    report["overload_seconds"] = NUM_TURNS * (SETTLING_SECONDS + TURN_SECONDS)
    report["goodput_1x_requests_per_second"] = round(mean(at_capacity), 1)
    report["goodput_10x_vs_1x"] = round(ratio, 3)
    report["goodput_10x_vs_1x_smallest"] = round(min(map(truediv, overloaded, at_capacity)), 3)
    report["goodput_10x_vs_1x_largest"] = round(max(map(truediv, overloaded, at_capacity)), 3)
    report["rejected"] = len(waits)
    report["reject_p50_ms"] = round(percentile(waits, 50), 2)
    report["reject_p99_ms"] = round(percentile(waits, 99), 2)
    report["reject_p99_ms_at_server"] = round(percentile(at_server, 99), 2)
    report["overload_memory_growth_mb"] = round(growth / 1e6, 1)
    report["overload_load_cores"] = round(load_seconds / (NUM_TURNS * (SETTLING_SECONDS + TURN_SECONDS)), 3)
    assert {answer.status for answer in answered} == {200}
    assert {answer.status for answer in answers} == {200, 429}
    assert len(at_server) == len(waits)
    assert ratio >= 0.95
    assert percentile(at_server, 99) <= 20
    assert percentile(waits, 99) <= 20
    assert growth <= MAX_GROWTH


async def answered_beside(server: ServerProcess, request: bytes, others: Iterable[Endless]) -> list[float]:
    """How long the request takes, in seconds, many times, while the others go on."""
    arrivals = Arrivals(server.port)
    async with asyncio.TaskGroup() as group:
        going_on = [group.create_task(other) for other in others]
        await asyncio.sleep(SETTLING_SECONDS)
        await arrivals.ask([request], evenly(OTHERS_PER_SECOND, ROUND_SECONDS))
        answers = await arrivals.finish()
        for task in going_on:
            task.cancel()
    assert {answer.status for answer in answers} == {200}
    return [answer.seconds for answer in answers]


def test_slow_clients_do_not_slow_others(tmp_path: Path, report: dict[str, float]) -> None:
    """The same streams are asked for in both, so that the same rows run: it is the reading that is slow."""
    with launcher(tmp_path) as launch:
        server = launch()
        upload(server, None, ["task"])
        request = generate("task", num_new_tokens=8)
        stream = generate("task", num_new_tokens=200, stream=True)

        async def read() -> None:
            connection = await Connection.to(server.port)
            try:
                await connection.ask(stream)
            finally:
                connection.close()

        alone: list[float] = []
        beside: list[float] = []
        for _ in range(NUM_ROUNDS):  # in turns: the machine may have changed between the first and the last
            alone += asyncio.run(answered_beside(server, request, [begin_every_second(read)]))
            slow = [drip_headers(server.port) for _ in range(NUM_SLOW_HEADERS)]
            slow.append(begin_every_second(lambda: read_slowly(server.port, stream)))
            beside += asyncio.run(answered_beside(server, request, slow))
        assert server.end() == 0
    ratio = percentile(beside, 99) / percentile(alone, 99)
    report["slow_clients_requests"] = len(beside)
    report["slow_clients_p99_ms"] = round(percentile(beside, 99) * 1000, 1)
    report["slow_clients_p99_ratio"] = round(ratio, 3)
    assert ratio <= 1.2
