"""The simulated fleet does what the real server does, and its costs can be read off what a real one answers."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from simpy import Environment

from benchmarks.fleet.costs import PROMPT_TOKEN_OVER_ROW, ReplicaCosts, Work, fit
from benchmarks.fleet.fleet import Fleet, Loss
from benchmarks.fleet.load import Popularity
from benchmarks.fleet.page import rewrite
from benchmarks.fleet.questions import ROUTERS, WINDOW_SECONDS, Recovery, Window
from benchmarks.fleet.replica import Outcome, PrefixCache, Replica, Request
from benchmarks.fleet.router import Affinity, Anywhere
from benchmarks.fleet_sim import calibrate, figures_of, hold_against
from tests.docs.pages import ROOT

WORK = Work(num_prompt_tokens=32, num_new_tokens=64)
ROW_SECONDS = 0.0015  # of a further row in a step
COSTS = ReplicaCosts(
    step_seconds=tuple((num_rows, 0.015 + ROW_SECONDS * num_rows) for num_rows in (1, 8, 32, 64)),
    prefill_seconds_per_token=PROMPT_TOKEN_OVER_ROW * ROW_SECONDS,
    request_seconds=0.006,
    load_seconds=0.012,
    cold_load_seconds=0.1,
    start_seconds=30.0,
    prefix_bytes=1 << 20,
    has_spare_core=True,
)
SMALL = replace(COSTS, max_num_seqs=2)
TASKS = Popularity(10_000, 1.0)
FLEET = Fleet(costs=COSTS, num_replicas=5, popularity=TASKS, cache_bytes=200 << 20, router=partial(Anywhere, 2))


def asked(env: Environment, replica: Replica, *tasks: int) -> list[Request]:
    """All at this moment."""
    requests = [Request(task, env.now) for task in tasks]

    def ask(request: Request):  # type: ignore[no-untyped-def]
        yield from replica.answer(request)
        request.ended_at = env.now

    for request in requests:
        env.process(ask(request))
    return requests


def test_a_requests_time_is_its_prompt_and_its_steps() -> None:
    env = Environment()
    replica = Replica(env, COSTS, WORK, 1 << 30, warm=[7])
    (request,) = asked(env, replica, 7)
    env.run()
    first_step = 32 * COSTS.prefill_seconds_per_token + COSTS.step(1)
    assert request.first_token_at == pytest.approx(COSTS.request_seconds + first_step)
    assert request.ended_at == pytest.approx(request.first_token_at + 63 * COSTS.step(1))
    assert request.outcome is Outcome.ANSWERED


def test_rows_beyond_the_slots_wait_and_those_beyond_the_queue_are_refused() -> None:
    env = Environment()
    requests = asked(env, Replica(env, SMALL, WORK, 1 << 30, warm=[7]), *[7] * 11)
    env.run()
    assert Counter(request.outcome for request in requests) == {Outcome.ANSWERED: 10, Outcome.REFUSED: 1}
    assert len({request.ended_at for request in requests[:10]}) == 5  # two by two


def test_rows_decode_while_one_waits_for_the_bucket_and_many_wait_for_one_load() -> None:
    env = Environment()
    replica = Replica(env, COSTS, WORK, 1 << 30, warm=[7])
    known, *cold = asked(env, replica, 7, 8, 8)
    env.run()
    assert [request.was_cold for request in (known, *cold)] == [False, True, True]
    assert known.first_token_at < COSTS.cold_load_seconds < min(request.first_token_at for request in cold)
    assert cold[0].first_token_at == cold[1].first_token_at
    (again,) = asked(env, replica, 8)
    env.run()
    assert not again.was_cold


def test_without_a_spare_core_http_is_the_engines_time() -> None:
    spare, crowded = (COSTS.requests_per_second(64, WORK), COSTS.crowded().requests_per_second(64, WORK))
    assert 1 / crowded - 1 / spare == pytest.approx(COSTS.request_seconds * 63 / 64)
    alone = replace(FLEET, costs=COSTS.crowded(), num_replicas=1, popularity=Popularity(64, 0.0))
    assert alone.closed(64, 3).requests_per_second == pytest.approx(crowded, rel=0.01)


def test_the_least_recently_used_prefix_goes_first() -> None:
    cache = PrefixCache(2, warm=[1, 2])
    assert cache.has(1)
    cache.keep(3)
    assert [cache.has(task) for task in (1, 2, 3)] == [True, False, True]


def test_a_cache_begins_as_a_long_life_would_leave_it() -> None:
    begun = TASKS.used_last(np.arange(10_000), 200, np.random.default_rng(0))
    drawn = TASKS.tasks(np.random.default_rng(1))
    cache, hits = PrefixCache(200), []
    for _ in range(100_000):
        task = next(drawn)
        hits.append(cache.has(task))
        if not hits[-1]:
            cache.keep(task)
    chances = np.arange(1, 10_001) ** -1.0
    assert chances[begun[-50:]].mean() > chances[begun[:50]].mean()  # the popular were asked for of late
    found = chances[begun].sum() / chances.sum()
    assert found == pytest.approx(np.mean(hits[10_000:]), abs=0.02)


def test_costs_are_found_again_from_what_one_replica_answers() -> None:
    popularity = Popularity(64, 0.0)
    one = Fleet(costs=COSTS, num_replicas=1, popularity=popularity, cache_bytes=1 << 30, router=partial(Anywhere, 1))
    answered = {num: one.closed(num, 3).requests_per_second for num in (1, 8, 32, 64)}
    found = fit(
        answered,
        WORK,
        request_seconds=COSTS.request_seconds,
        misses_vs_hits=1 / (1 + COSTS.load_seconds * answered[32]),
        cold_load_seconds=COSTS.cold_load_seconds,
        start_seconds=COSTS.start_seconds,
        prefix_bytes=COSTS.prefix_bytes,
    )
    for (num, seconds), (same_num, known) in zip(found.step_seconds, COSTS.step_seconds, strict=True):
        assert num == same_num
        assert seconds == pytest.approx(known, rel=0.01)
    assert found.prefill_seconds_per_token == pytest.approx(COSTS.prefill_seconds_per_token, rel=0.01)
    assert found.load_seconds == pytest.approx(COSTS.load_seconds)


def test_a_lost_replica_fails_what_it_has_and_comes_back_cold() -> None:
    env = Environment()
    replica = Replica(env, COSTS, WORK, 1 << 30, warm=[7])
    requests = asked(env, replica, 7, 8)
    env.run(until=0.05)
    env.process(replica.lose())
    env.run(until=0.06)
    assert not replica.is_up
    assert [(request.outcome, request.ended_at) for request in requests] == [(Outcome.FAILED, 0.05)] * 2
    env.run(until=0.05 + COSTS.start_seconds + 0.01)
    assert replica.is_up
    assert replica.num_open == 0
    (again,) = asked(env, replica, 7)
    env.run()
    assert again.was_cold
    assert again.outcome is Outcome.ANSWERED


@pytest.mark.parametrize("router", ROUTERS)
def test_a_fleet_loses_only_what_was_in_flight(router: str) -> None:
    told = replace(FLEET, router=ROUTERS[router]).open(20.0, 60.0, Loss(at=20.0, num_replicas=1))
    failed = [request for request in told.requests if request.outcome is Outcome.FAILED]
    assert 0 < len(failed) <= COSTS.max_open
    assert {request.ended_at for request in failed} == {20.0}
    assert told.share(Outcome.ANSWERED) == 1 - len(failed) / len(told.requests)


def test_a_task_has_its_replica_and_only_those_of_a_lost_one_move() -> None:
    router = Affinity(math.inf, 1000, 5, np.random.default_rng(0))
    replicas = [Replica(Environment(), COSTS, WORK, 1 << 30) for _ in range(5)]
    before = {task: router.choose(task, replicas) for task in range(1000)}
    assert {task for number in range(5) for task in router.tasks_of(number)} == set(range(1000))
    assert all(before[task] is replicas[2] for task in router.tasks_of(2))
    replicas[2].is_up = False
    moved = {task for task in range(1000) if router.choose(task, replicas) is not before[task]}
    assert moved == set(router.tasks_of(2).tolist())


def test_bounded_affinity_lets_no_replica_drown_in_one_tasks_requests() -> None:
    one_task = replace(FLEET, popularity=Popularity(1, 0.0))
    drowned = replace(one_task, router=ROUTERS["affinity"]).open(20.0, 60.0)
    bounded = replace(one_task, router=ROUTERS["bounded affinity"]).open(20.0, 60.0)
    assert drowned.share(Outcome.REFUSED) > 0.3
    assert bounded.share(Outcome.ANSWERED) == 1


def test_affinity_finds_more_in_memory_and_asks_the_registry_less() -> None:
    anywhere, affine = (
        replace(FLEET, router=ROUTERS[name]).open(20.0, 60.0) for name in ("fewest of two", "bounded affinity")
    )
    assert affine.hit_rate > anywhere.hit_rate + 0.1
    assert affine.lookups_per_request < anywhere.lookups_per_request


def test_the_same_fleet_has_the_same_life_each_time() -> None:
    first, second, other = (replace(FLEET, seed=seed).open(20.0, 30.0, Loss(10.0, 1)).requests for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_it_is_normal_again_after_the_last_window_that_was_not() -> None:
    def windows(*p99s: float) -> list[Window]:
        return [Window((number - 2) * WINDOW_SECONDS, p99, True) for number, p99 in enumerate(p99s)]

    recovery = Recovery(1, "random", 0, 0, 1.0, 1.0, 1.0, windows(1.0, 1.1, 1.2, 3.0, 1.0, 2.0, 1.2, 1.0))
    assert recovery.seconds_to_normal == 4 * WINDOW_SECONDS
    assert replace(recovery, windows=windows(1.0, 1.0, 1.0)).seconds_to_normal == 0


def test_two_replicas_are_predicted_from_one(tmp_path: Path) -> None:
    answered = {num: COSTS.requests_per_second(num, WORK) for num in (1, 8, 32, 64)}
    measured = {f"one_replica_requests_per_second_{num}": value for num, value in answered.items()}
    measured["other_processor_seconds_per_request"] = COSTS.request_seconds
    for name, figure, value in (
        ("tasks", "distinct_10000_vs_one_task", 0.9),
        ("operations", "image_ready_seconds", 30.0),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"figures": {figure: value}}))
    costs = calibrate(measured, tmp_path).crowded()
    real = 2 * COSTS.crowded().requests_per_second(64, WORK)
    told = hold_against({"two_replicas_requests_per_second": real, "two_replicas_p50_seconds": 128 / real}, costs)
    assert told["simulator_error"] < 0.03
    assert "simulator_error" not in hold_against({}, costs)
    assert told["predicted_two_replicas_p50_seconds"] == pytest.approx(128 / real, rel=0.05)


def test_the_page_says_what_the_last_run_said(tmp_path: Path) -> None:
    page, figures = ROOT / "docs/scaling.md", figures_of(ROOT / "docs/scaling.json")
    copy = Path(shutil.copy(page, tmp_path))
    rewrite(copy, figures)
    assert copy.read_text() == page.read_text()
    assert copy.read_text().count("| bounded affinity |") == 4 + 2
