"""Every system call of every operation, killed or failing; a thousand kills at random; two hundred flipped bits.

`pytest -m torture tests/torture`; minutes. `TORTURE_KILLS` is the number of random kills.
"""

import os
import random
from pathlib import Path

import pytest

from tests.prefix_store.bit_flips import flip, prepare_for_flips
from tests.prefix_store.durability import OPERATIONS, kill_at_random, prepare
from tests.torture.faults import NEVER_FAILING
from tests.torture.trials import enumerate_points, fail_at, kill_at, kill_while_starting, set_scene

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

Report = dict[str, int]
NUM_FLIPS = {"file": 100, "record": 100, "page": 200}
ERRORS = ("EIO", "ENOSPC", "EROFS", "EMFILE")


def count(report: Report, **counts: int) -> None:
    for name, number in counts.items():
        report[name] = report.get(name, 0) + number


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_system_call_loses_nothing(tmp_path: Path, report: Report, operation: str) -> None:
    scene = set_scene(operation, tmp_path, prepare)
    points, not_durable = enumerate_points(scene)
    wrong = [problem for point in points for problem in kill_at(scene, point)]
    count(report, crash_points=len(points), crash_violations=len(wrong), not_durable=len(not_durable))
    assert not_durable == []
    assert wrong == []


@pytest.mark.usefixtures("strace")
def test_a_kill_while_a_store_is_made_leaves_one_that_can_be_opened(tmp_path: Path, report: Report) -> None:
    num_points, wrong = kill_while_starting(tmp_path)
    count(report, crash_points=num_points, crash_violations=len(wrong))
    assert wrong == []


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("code", ERRORS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_error_at_any_system_call_is_told_and_undone(
    tmp_path: Path, report: Report, operation: str, code: str
) -> None:
    scene = set_scene(operation, tmp_path, prepare)
    points = [point for point in enumerate_points(scene)[0] if point.name not in NEVER_FAILING]
    num_acknowledged, wrong = 0, []
    for point in points:
        for for_good in (False, True):
            acknowledged, problems = fail_at(scene, point, code, for_good=for_good)
            num_acknowledged += acknowledged
            wrong += problems
    count(
        report,
        injected_errors=2 * len(points),
        injected_errors_survived=num_acknowledged,
        error_violations=len(wrong),
    )
    assert wrong == []


def test_a_writer_killed_at_random_loses_nothing_that_it_acknowledged(tmp_path: Path, report: Report) -> None:
    num_kills = int(os.environ.get("TORTURE_KILLS", "1000"))
    num_acknowledged, wrong = kill_at_random(tmp_path, num_kills, seed=2)
    count(report, random_kills=num_kills, acknowledged=num_acknowledged, acknowledged_lost=len(wrong))
    assert wrong == []


@pytest.mark.parametrize("kind", NUM_FLIPS)
def test_a_flipped_bit_is_found_and_nothing_wrong_is_served(tmp_path: Path, report: Report, kind: str) -> None:
    was = prepare_for_flips(tmp_path / "template")
    choice = random.Random(3)
    outcomes = [flip(tmp_path / "template", tmp_path / "hit", was, choice, kind) for _ in range(NUM_FLIPS[kind])]
    num_found = sum(outcome.is_found for outcome in outcomes)
    num_harmless = sum(outcome.is_harmless and not outcome.is_found for outcome in outcomes)
    num_served_wrong = sum(bool(outcome.served_wrong) for outcome in outcomes)
    name = "registry_page_flips" if kind == "page" else "bit_flips"
    count(report, **{name: len(outcomes), f"{name}_found": num_found, f"{name}_harmless": num_harmless})
    count(report, bit_flips_served_wrong=num_served_wrong)
    assert num_served_wrong == 0
    assert num_found + num_harmless == len(outcomes)
    assert kind == "page" or num_found == len(outcomes)
