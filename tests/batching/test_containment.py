"""Where a call for many raises, only the culprits fail."""

import gc
import weakref

import pytest
import torch

from batching.containment import Failure, run_contained


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
