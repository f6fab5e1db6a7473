"""A server that is asked for more than it can do, and one whose clients hardly read or write.

`pytest -m torture tests/torture/test_overload.py`; seven minutes. The load is made on the same cores as the answers.
"""

import asyncio
import gc
import json
import os
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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

SECONDS = 60
CAPACITY_SECONDS = 20
SETTLING_SECONDS = 10
# All that one tenant may have on 64 slots, running and waiting: more would be refused.
NUM_AT_ONCE = 64 + 2 * 64
# Of different lengths, so that rows do not end all at once; the mean is 64.
NEW_TOKENS = (48, 72, 56, 80, 64)
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
def on_one_core() -> Iterator[None]:
    """Where this thread runs. The load of other machines takes no core; this one takes of one, but not now of the
    server's and now of the engine's, which leaves neither alone."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


async def capacity(server: ServerProcess, requests: Sequence[bytes]) -> float:
    """Requests answered in a second where as many wait as may."""
    started_at = time.monotonic() + SETTLING_SECONDS
    answers = await keep_asking(server.port, requests, NUM_AT_ONCE, SETTLING_SECONDS + CAPACITY_SECONDS)
    return sum(answer.status == 200 and answer.ended_at >= started_at for answer in answers) / CAPACITY_SECONDS


async def goodput(server: ServerProcess, requests: Sequence[bytes], per_second: float) -> tuple[float, list[Answer]]:
    """Requests answered in full in a second, after the first moments, and all answers."""
    arrivals = Arrivals(server.port)
    started_at = time.monotonic() + SETTLING_SECONDS
    await arrivals.ask(requests, evenly(per_second, SETTLING_SECONDS + SECONDS))
    answers = await arrivals.finish()
    ended_at = started_at + SECONDS
    num_served = sum(answer.status == 200 and started_at <= answer.ended_at <= ended_at for answer in answers)
    return num_served / SECONDS, answers


def waits_of_refusals(log: Path, since: int, until: int) -> list[float]:
    """In milliseconds, as the server counts: from the last byte of a request's head read to its answer written."""
    with log.open("rb") as lines:
        lines.seek(since)
        events = [json.loads(line) for line in lines.read(until - since).splitlines()]
    return [event["ms"] for event in events if event["event"] == "request" and event["status"] == 429]


def test_ten_times_the_load_costs_little_goodput_and_is_refused_at_once(
    tmp_path: Path, report: dict[str, float]
) -> None:
    (key,) = admit(tmp_path, Tenant(name="acme")).values()
    with launcher(tmp_path) as launch:
        server = launch()
        upload(server, key, ["task"])
        requests = [generate("task", num_new_tokens=num, key=key) for num in NEW_TOKENS]
        with on_one_core():  # from here on: what the server started before has all cores
            once = asyncio.run(capacity(server, requests))
            before, answered = asyncio.run(goodput(server, requests, once))
            memory, since = server.resources.memory, (tmp_path / "log").stat().st_size
            with processor_seconds() as spent:
                overloaded, answers = asyncio.run(goodput(server, requests, 10 * once))
            growth, until = server.resources.memory - memory, (tmp_path / "log").stat().st_size
            after, answered_after = asyncio.run(goodput(server, requests, once))
        assert server.end() == 0
    at_capacity = (before + after) / 2  # a machine that gets slower or faster all the time changes no ratio
    answered += answered_after
    at_server = waits_of_refusals(tmp_path / "log", since, until)
    waits = [answer.wait * 1000 for answer in answers if answer.status == 429]
    report["overload_requests_per_second"] = round(10 * once, 1)
    report["goodput_1x_requests_per_second"] = round(at_capacity, 1)
    report["goodput_10x_vs_1x"] = round(overloaded / at_capacity, 3)
    report["rejected"] = len(waits)
    report["reject_p50_ms"] = round(percentile(waits, 50), 2)
    report["reject_p99_ms"] = round(percentile(waits, 99), 2)
    report["reject_p99_ms_at_server"] = round(percentile(at_server, 99), 2)
    report["overload_memory_growth_mb"] = round(growth / 1e6, 1)
    report["overload_load_cores"] = round(spent[0] / (SETTLING_SECONDS + SECONDS), 3)
    assert {answer.status for answer in answered} <= {200, 429}
    assert {answer.status for answer in answers} == {200, 429}
    assert len(at_server) == len(waits)
    assert overloaded / at_capacity >= 0.95
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
