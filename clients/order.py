"""Keeps many things in flight and hands them over in the order in which they were started.

Knows that futures are done or not. Knows nothing of event loops, threads or HTTP.
"""

from collections import deque
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar


class Future(Protocol):
    """What `asyncio.Future` and `concurrent.futures.Future` have in common."""

    def done(self) -> bool: ...
    def cancel(self) -> object: ...


F = TypeVar("F", bound=Future)


def in_order(futures: Iterable[F], max_ahead: int) -> Generator[F, None, None]:
    """Each future in turn; taking one from `futures` starts it, and at most `max_ahead` are held.

    A future that is not done is handed over only when no further one may be started: the caller is to wait for it.
    Closing the iterator cancels those that it holds.
    """
    held: deque[F] = deque()
    try:
        for future in futures:
            held.append(future)
            while held and (held[0].done() or len(held) >= max_ahead):
                yield held[0]
                held.popleft()
        while held:
            yield held[0]
            held.popleft()
    finally:
        for future in held:
            future.cancel()
