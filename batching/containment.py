"""Runs many things in one call; where that raises, only the culprits fail.

Knows nothing of what is run, but that it may be run again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item could not be run."""

    reason: str


def run_contained(run: Callable[[list[Item]], list[Result]], items: list[Item]) -> list[Result | Failure]:
    """`run(items)`, one result for each; if it raises, the halves are run by themselves, down to single items.

    Out of memory is answered in the same way: by smaller batches. Errors of the device itself are raised, since it
    cannot be trusted any more.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except Exception as error:
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{type(error).__name__}: {error}"
        logger.warning("a batch of %d failed: %s", len(items), reason, exc_info=len(items) == 1)
    # Outside of the except block: there the traceback would keep what the failed run had allocated.
    if len(items) == 1:
        return [Failure(reason)]
    middle = len(items) // 2
    return run_contained(run, items[:middle]) + run_contained(run, items[middle:])
