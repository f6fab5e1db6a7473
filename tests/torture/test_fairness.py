"""Tenants of one busy server: what each is served, and how long a quiet one waits beside a flood.

`pytest -m torture tests/torture/test_fairness.py`; twelve minutes, most of them waiting for one request a second.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.load import EVENT, Arrivals, OnData, evenly, generate, keep_asking, percentile
from prefix_store.tenants import Tenant
from tests.torture.plots import Curves
from tests.torture.processes import ServerProcess, admit, launcher, upload

pytestmark = [pytest.mark.torture, pytest.mark.alone, pytest.mark.timeout(900)]

WARM_UP_SECONDS, SECONDS = 10, 60
NUM_NEW_TOKENS = 32
NUM_SLOTS = 16
# More than a tenant may hold, so that its queue is never empty.
NUM_AT_ONCE = 2 * NUM_SLOTS

# What one tenant that does not stop holds: an eighth of the slots is kept for others. And as many as may run or wait.
NUM_FLOODED_SLOTS = NUM_SLOTS - NUM_SLOTS // 8
NUM_FLOODING = NUM_SLOTS + 2 * NUM_SLOTS
# Of different lengths, so that rows do not end all at once; the mean is 64.
FLOODING_NEW_TOKENS = (48, 72, 56, 80, 64)
NUM_LONG_PROMPT_TOKENS = 288
ROUND_SECONDS, NUM_ROUNDS = 50, 2


async def serve_backlogs(server: ServerProcess, requests: Mapping[str, Sequence[bytes]]) -> dict[str, Counter[int]]:
    """How many tokens each tenant is sent in each second, while all of them always have more waiting."""
    started_at = time.monotonic()
    tokens: dict[str, Counter[int]] = {tenant: Counter() for tenant in requests}

    def counting(tenant: str) -> OnData:
        def count(data: bytes) -> None:
            tokens[tenant][int(time.monotonic() - started_at)] += data.count(EVENT)

        return count

    async with asyncio.TaskGroup() as group:
        asking = [
            group.create_task(keep_asking(server.port, own, NUM_AT_ONCE, WARM_UP_SECONDS + SECONDS, counting(tenant)))
            for tenant, own in requests.items()
        ]
    assert {answer.status for task in asking for answer in task.result()} == {200}
    return tokens


@pytest.mark.parametrize(
    ("figure", "weights", "num_tasks", "target", "tolerance"),
    [
        ("fair_equal_ratio", (1, 1), (1, 1), 1.0, 0.05),
        ("fair_ten_tasks_ratio", (1, 1), (10, 1), 1.0, 0.05),
        ("fair_weight_3_ratio", (3, 1), (1, 1), 3.0, 0.2),
    ],
)
def test_backlogged_tenants_are_served_by_their_weights_alone(
    tmp_path: Path,
    report: dict[str, float],
    curves: Curves,
    figure: str,
    weights: tuple[int, int],
    num_tasks: tuple[int, int],
    target: float,
    tolerance: float,
) -> None:
    tenants = [Tenant(name=name, weight=weight) for name, weight in zip(("first", "second"), weights, strict=True)]
    keys = admit(tmp_path, *tenants)
    requests: dict[str, Sequence[bytes]] = {}
    with launcher(tmp_path) as launch:
        server = launch("--max-num-seqs", str(NUM_SLOTS))
        for (name, key), num in zip(keys.items(), num_tasks, strict=True):
            task_ids = [f"task-{number}" for number in range(num)]
            upload(server, key, task_ids)
            requests[name] = [
                generate(task_id, num_new_tokens=NUM_NEW_TOKENS, key=key, stream=True) for task_id in task_ids
            ]
        tokens = asyncio.run(serve_backlogs(server, requests))
    measured = range(WARM_UP_SECONDS, WARM_UP_SECONDS + SECONDS)
    first, second = (sum(tokens[name][moment] for moment in measured) for name in ("first", "second"))
    curves.add(figure, tokens)
    report[figure] = round(first / second, 3)
    report["fair_tokens_per_second"] = round((first + second) / SECONDS)
    assert first / second == pytest.approx(target, abs=tolerance)


async def first_tokens(server: ServerProcess, quiet: bytes, flood: Sequence[bytes], num_flooding: int) -> list[float]:
    """How long the quiet tenant waits for its first tokens, in seconds, beside so many requests of the other."""
    arrivals = Arrivals(server.port)
    async with asyncio.TaskGroup() as group:
        flooding = group.create_task(keep_asking(server.port, flood, num_flooding, WARM_UP_SECONDS + ROUND_SECONDS))
        await asyncio.sleep(WARM_UP_SECONDS)
        await arrivals.ask([quiet], evenly(1, ROUND_SECONDS))
    answers = await arrivals.finish()
    assert {answer.status for answer in answers} == {200}
    # Rows of the round before may not have ended when the first of this one come.
    assert {answer.status for answer in flooding.result()} <= {200, 429}
    return [answer.wait for answer in answers]


def test_a_quiet_tenant_does_not_wait_behind_a_flood(tmp_path: Path, report: dict[str, float]) -> None:
    keys = admit(tmp_path, Tenant(name="flooding"), Tenant(name="quiet"))
    with launcher(tmp_path) as launch:
        server = launch("--max-num-seqs", str(NUM_SLOTS))
        for key in keys.values():
            upload(server, key, ["task"])
        quiet = generate("task", num_new_tokens=16, key=keys["quiet"], stream=True)
        flood = [generate("task", num_new_tokens=num, key=keys["flooding"]) for num in FLOODING_NEW_TOKENS]
        without_queue: list[float] = []
        with_full_queue: list[float] = []
        for _ in range(NUM_ROUNDS):  # in turns: the machine may have changed between the first and the last
            without_queue += asyncio.run(first_tokens(server, quiet, flood, NUM_FLOODED_SLOTS))
            with_full_queue += asyncio.run(first_tokens(server, quiet, flood, NUM_FLOODING))
    ratio = percentile(with_full_queue, 99) / percentile(without_queue, 99)
    report["victim_requests"] = len(with_full_queue)
    report["victim_ttft_p99_ms"] = round(percentile(with_full_queue, 99) * 1000, 1)
    report["victim_ttft_vs_alone"] = round(ratio, 3)
    assert ratio <= 2


def test_a_quiet_tenant_does_not_wait_until_a_floods_long_prompts_are_read(
    tmp_path: Path, report: dict[str, float]
) -> None:
    keys = admit(tmp_path, Tenant(name="flooding"), Tenant(name="quiet"))
    with launcher(tmp_path) as launch:
        server = launch("--max-num-seqs", str(NUM_SLOTS))
        for key in keys.values():
            upload(server, key, ["task"])
        quiet = generate("task", num_new_tokens=16, key=keys["quiet"], stream=True)
        waits: dict[int, list[float]] = {32: [], NUM_LONG_PROMPT_TOKENS: []}
        for _ in range(NUM_ROUNDS):
            for num_tokens, found in waits.items():
                flood = [
                    generate("task", num_prompt_tokens=num_tokens, num_new_tokens=num, key=keys["flooding"])
                    for num in FLOODING_NEW_TOKENS
                ]
                found += asyncio.run(first_tokens(server, quiet, flood, NUM_FLOODING))
    short, long = (percentile(found, 99) for found in waits.values())
    report["victim_ttft_p99_beside_long_prompts_ms"] = round(long * 1000, 1)
    report["victim_ttft_long_vs_short_prompts"] = round(long / short, 3)
    assert long / short <= 4
