"""What a task serves is remembered as long as it may be, and longer only where nobody can be asked."""

import pytest

from prefix_store.errors import StoreUnavailable, UnknownTask
from prefix_store.pointers import Pointer, ServedPointers

KEY = ("acme", "poet")


def a_pointer() -> Pointer:
    return Pointer("acme", version=None, config=None)  # type: ignore[arg-type]


class Registry:
    """Answers what it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.answer: Pointer | Exception = a_pointer()
        self.num_reads = 0
        self.seconds = 0.0

    def read(self) -> Pointer:
        self.num_reads += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def clock(self) -> float:
        return self.seconds


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def pointers(registry: Registry) -> ServedPointers:
    return ServedPointers(max_seconds=2.0, clock=registry.clock)


def test_what_was_read_is_asked_for_again_after_two_seconds(pointers: ServedPointers, registry: Registry) -> None:
    first = pointers.get_or_read(KEY, registry.read)
    registry.answer = Pointer("zeta", version=None, config=None)  # type: ignore[arg-type]
    registry.seconds = 1.9
    assert pointers.get(KEY) is pointers.get_or_read(KEY, registry.read) is first
    registry.seconds = 2.0
    assert pointers.get(KEY) is None
    assert pointers.get_or_read(KEY, registry.read) is registry.answer
    assert registry.num_reads == 2


def test_where_nobody_else_writes_it_is_never_asked_for_again(registry: Registry) -> None:
    pointers = ServedPointers(clock=registry.clock)
    pointers.get_or_read(KEY, registry.read)
    registry.seconds = 1e9
    assert pointers.get(KEY) is registry.answer


def test_while_nobody_can_be_asked_the_last_answer_holds_and_is_asked_for_now_and_then(
    pointers: ServedPointers, registry: Registry
) -> None:
    last = pointers.get_or_read(KEY, registry.read)
    registry.answer = StoreUnavailable("the database is gone")
    registry.seconds = 100.0
    assert pointers.get_or_read(KEY, registry.read) is last
    registry.seconds = 101.9
    assert pointers.get(KEY) is last
    assert registry.num_reads == 2
    with pytest.raises(StoreUnavailable):
        pointers.get_or_read(("acme", "unknown"), registry.read)


def test_what_is_said_to_be_gone_does_not_come_back_when_nobody_can_be_asked(
    pointers: ServedPointers, registry: Registry
) -> None:
    pointers.get_or_read(KEY, registry.read)
    registry.seconds = 2.0
    for answer in (UnknownTask("poet"), StoreUnavailable("the database is gone")):
        registry.answer = answer
        with pytest.raises(type(answer)):
            pointers.get_or_read(KEY, registry.read)
