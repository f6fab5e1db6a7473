"""What was answered for is there, whatever killed the process, failed or flipped. The long form is `tests/torture`."""

import errno
import os
import random
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from prefix_store.errors import OutOfSpace, StoreUnavailable
from tests.prefix_store.bit_flips import flip, prepare_for_flips
from tests.prefix_store.durability import OPERATIONS, kill_at_random, litter, observe, opened, prepare

NUM_KILLS = 12
NUM_FLIPS = 20  # of each kind


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    num_acknowledged, wrong = kill_at_random(tmp_path, NUM_KILLS, seed=1)
    assert wrong == []
    assert num_acknowledged > 0


@pytest.mark.parametrize("kind", ["file", "record"])
def test_every_flipped_bit_is_found_and_nothing_wrong_is_served(tmp_path: Path, kind: str) -> None:
    was = prepare_for_flips(tmp_path / "template")
    choice = random.Random(0)
    for number in range(NUM_FLIPS):
        outcome = flip(tmp_path / "template", tmp_path / "hit", was, choice, kind)
        assert outcome.is_found, f"flip {number}"
        assert outcome.served_wrong == []


def test_a_bit_flipped_anywhere_in_the_registry_serves_nothing_wrong(tmp_path: Path) -> None:
    was = prepare_for_flips(tmp_path / "template")
    choice = random.Random(0)
    for number in range(NUM_FLIPS):
        outcome = flip(tmp_path / "template", tmp_path / "hit", was, choice, "page")
        assert outcome.is_found or outcome.is_harmless, f"flip {number}"
        assert outcome.served_wrong == []


CALLS = {"open": (Path, "open"), "fsync": (os, "fsync"), "rename": (Path, "replace")}
CODES = {errno.EIO: StoreUnavailable, errno.ENOSPC: OutOfSpace, errno.EROFS: StoreUnavailable,
         errno.EMFILE: StoreUnavailable}  # fmt: skip


@pytest.mark.parametrize("operation", ["publish", "replace"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_an_operation_that_fails_at_any_of_its_files_leaves_things_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, call: str, code: int
) -> None:
    prepare(tmp_path)
    owner, name = CALLS[call]
    with opened(tmp_path) as store:
        before = observe(store)
        for nth in range(1, 10):
            with monkeypatch.context() as fault:
                fault.setattr(owner, name, failing_at(nth, getattr(owner, name), code))
                if not fails(store, operation, CODES[code]):
                    break
            assert observe(store) == before
            assert litter(tmp_path, store) == set()
        assert 1 < nth < 10
        assert observe(store) != before
        assert litter(tmp_path, store) == set()


def failing_at(nth: int, call: Callable[..., object], code: int) -> Callable[..., object]:
    """A system call that fails the nth time, and only then."""
    calls = count(1)

    def fail_once(*arguments: object, **keywords: object) -> object:
        if next(calls) == nth:
            raise OSError(code, os.strerror(code))
        return call(*arguments, **keywords)

    return fail_once


def fails(store: object, operation: str, error: type[Exception]) -> bool:
    try:
        OPERATIONS[operation](store)
    except error:
        return True
    return False
