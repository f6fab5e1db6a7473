"""Where a call for many raises, only the culprits fail."""

import gc
import weakref

import pytest
import torch

from batching.containment import Failure, run_contained
from batching.types import FinishReason
from tests.batching.poison import KINDS, MATES, MODEL, alone, is_same, poison_many
from tests.batching.support import make_engine, run


def double(items: list[int]) -> list[int]:
    if any(item < 0 for item in items):
        raise ValueError("negative")
    return [2 * item for item in items]


@pytest.mark.parametrize("culprits", [(), (0,), (3, 4), range(8)])
def test_only_the_culprits_fail(culprits):
    items = [-1 if i in culprits else i for i in range(8)]
    expected = [Failure("ValueError: negative") if i in culprits else 2 * i for i in range(8)]
    assert run_contained(double, items) == expected


def test_what_a_failed_run_allocated_is_free_before_the_halves_run():
    allocated: list[weakref.ref] = []

    def run(items: list[int]) -> list[int]:
        gc.collect()
        assert all(ref() is None for ref in allocated)
        activations = torch.ones(10)
        allocated.append(weakref.ref(activations))
        if len(items) > 1:
            raise torch.OutOfMemoryError("too large")
        return items

    assert run_contained(run, [1, 2, 3, 4]) == [1, 2, 3, 4]


def test_a_device_that_cannot_be_trusted_any_more_is_no_rows_fault():
    def run(items: list[int]) -> list[int]:
        raise torch.AcceleratorError("device-side assert")

    with pytest.raises(torch.AcceleratorError):
        run_contained(run, [1, 2])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_poisoned_rows_mates_say_what_they_say_without_it(dtype):
    outcomes = poison_many(num_trials=4 * len(KINDS), seed=1, dtype=dtype)
    assert sum(outcome.num_mates_changed for outcome in outcomes) == 0
    assert all(outcome.is_contained for outcome in outcomes)


def test_when_every_pass_raises_all_rows_fail_and_the_next_ones_are_served():
    engine = make_engine(MODEL)
    execute = engine._runner.execute

    def fail(steps):
        raise RuntimeError("always")

    engine._runner.execute = fail
    for outputs in run(engine, MATES[:6]):
        assert [output.finish_reason for output in outputs] == [FinishReason.ERROR]
    engine._runner.execute = execute
    assert all(map(is_same, alone("float32")[:6], run(engine, MATES[:6])))
