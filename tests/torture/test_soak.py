"""Ten minutes of everything at once, after which the server holds what it held before.

`pytest -m torture tests/torture/test_soak.py`; thirteen minutes.
"""

import asyncio
import sys
import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import linear_regression, mean

import pytest

from benchmarks.load import Answer, ask_at_once, generate
from prefix_store.tenants import Scope, Tenant, TenantLimits
from tests.torture.churn import REFUSED, RIGHT, churn
from tests.torture.processes import SERVE, ServerProcess, admit, launcher, upload

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]

SECONDS = 600
PLANTED_SECONDS = 120
WARM_UP_SECONDS = 100  # pools of threads and of connections fill, as do the allocator's
MAX_GROWTH = 20e6  # bytes for 100,000 requests, or 2 % where that is more
SETTLING_SECONDS = 15  # until what clients left behind is closed: the header timeout, and some

GAUGES = ("polyprefix_free_slots ", "polyprefix_requests_running ", "polyprefix_requests_waiting ")
Samples = list[tuple[float, int]]
MANY_UPLOADS = TenantLimits(uploads_per_minute=10**6, upload_burst=10**6)
# What the server may hold is no leak: the warm-up fills the cache of prefixes and every slot to its end, since the
# system gives memory when it is first written, not when it is asked for; and it has steps of as many tokens as any that
# follow, since oneDNN keeps code for each number of rows (of which there are few, see `batching.linear`).
NUM_SLOTS = 16
OPTIONS = ("--prefix-cache-bytes", str(8 << 20), "--max-num-seqs", str(NUM_SLOTS))
LONGEST = {"num_prompt_tokens": 32, "num_new_tokens": 430}
PROMPT_LENGTHS = range(1, 257)

# `polyprefix serve` that keeps a kilobyte of every request.
LEAKING = """
from polyprefix.cli import main
from server import middleware

record, kept = middleware._record, []

def leak(*arguments):
    kept.append(bytearray(1024))
    record(*arguments)

middleware._record = leak
main()
"""


@dataclass(frozen=True, slots=True)
class Soaked:
    """`before` and `after`: what the idle server held. In bytes: its `memory`, and its `growth` in 100,000 requests."""

    before: dict[str, float]
    after: dict[str, float]
    answers: dict[str, list[Answer]]
    memory: float
    growth: float

    @property
    def num_requests(self) -> int:
        return sum(map(len, self.answers.values()))

    @property
    def max_growth(self) -> float:
        return max(MAX_GROWTH, 0.02 * self.memory)


def held(server: ServerProcess, operator: str) -> dict[str, float]:
    """Threads, descriptors, slots and rows."""
    with server.client(operator) as http:
        lines = http.get("/metrics").raise_for_status().text.splitlines()
        gauges = dict(line.split() for line in lines if line.startswith(GAUGES))
        resources = server.resources
    counts = {"threads": resources.num_threads, "descriptors": resources.num_descriptors}
    return {**counts, **{name: float(gauge) for name, gauge in gauges.items()}}


def settled(server: ServerProcess, operator: str, expected: dict[str, float]) -> dict[str, float]:
    """What it holds once that is what is expected, or after a while."""
    deadline = time.monotonic() + SETTLING_SECONDS
    while (found := held(server, operator)) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


async def sampled(
    server: ServerProcess, keys: Sequence[str], seconds: float
) -> tuple[dict[str, list[Answer]], Samples]:
    """All answers, and the memory in each second, with its moment."""
    samples: Samples = []
    async with asyncio.TaskGroup() as group:
        churning = group.create_task(churn(server.port, keys, seconds))
        while not churning.done():
            samples.append((time.monotonic(), server.resources.memory))
            await asyncio.sleep(1)
    return churning.result(), samples


def soak(directory: Path, command: Sequence[str], seconds: float) -> Soaked:
    tenants = [Tenant(name=name, limits=MANY_UPLOADS) for name in ("acme", "globex")]
    keys = list(admit(directory, *tenants, scopes=tuple(Scope)).values())
    with launcher(directory) as launch:
        server = launch(*OPTIONS, command=command)
        upload(server, keys[0], ["kept"])
        longest = [generate("kept", key=keys[0], **LONGEST)] * NUM_SLOTS
        asyncio.run(ask_at_once(server.port, longest))
        for num_tokens in PROMPT_LENGTHS:  # alone, so each is a step of that many
            prompt = generate("kept", num_prompt_tokens=num_tokens, num_new_tokens=1, key=keys[0])
            asyncio.run(ask_at_once(server.port, [prompt]))
        asyncio.run(churn(server.port, keys, WARM_UP_SECONDS))
        time.sleep(SETTLING_SECONDS)
        before = held(server, keys[0])
        answers, samples = asyncio.run(sampled(server, keys, seconds))
        after = settled(server, keys[0], before)
        assert server.end() == 0
    ended_at = sorted(answer.ended_at for answer in chain.from_iterable(answers.values()))
    measured = samples[len(samples) // 10 :]
    num_requests = [bisect(ended_at, moment) for moment, _ in measured]
    memory = [memory for _, memory in measured]
    growth = linear_regression(num_requests, memory).slope * 100_000
    return Soaked(before, after, answers, mean(memory), growth)


def test_nothing_grows_in_a_long_life(tmp_path: Path, report: dict[str, float]) -> None:
    soaked = soak(tmp_path, SERVE, SECONDS)
    report["soak_minutes"] = round(SECONDS / 60, 1)
    report["soak_requests"] = soaked.num_requests
    report["soak_wrong_requests"] = len(soaked.answers["wrong"])
    report["soak_streams_left"] = len(soaked.answers["left"])
    report["soak_memory_mb"] = round(soaked.memory / 1e6)
    report["soak_growth_mb_per_100k"] = round(soaked.growth / 1e6, 2)
    report["soak_not_given_back"] = sum(soaked.after[name] != soaked.before[name] for name in soaked.before)
    assert {answer.status for answer in soaked.answers["right"]} <= RIGHT
    assert {answer.status for answer in soaked.answers["wrong"]} <= REFUSED
    assert soaked.after == soaked.before
    assert soaked.growth <= soaked.max_growth


def test_a_planted_leak_is_caught(tmp_path: Path, report: dict[str, float]) -> None:
    soaked = soak(tmp_path, (sys.executable, "-c", LEAKING, "serve"), PLANTED_SECONDS)
    report["planted_leak_mb_per_100k"] = round(soaked.growth / 1e6, 2)
    report["planted_leak_caught"] = int(soaked.growth > soaked.max_growth)
    assert soaked.growth > soaked.max_growth
