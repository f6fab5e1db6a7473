"""An event loop in a thread of its own, for callers that have none.

Knows threads. Knows nothing of what runs in the loop.
"""

import threading
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TypeVar, TypeVarTuple, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")
Args = TypeVarTuple("Args")


class LoopThread:
    """Runs from the first `start` to `close`, and `finish` as the last; safe to share between threads."""

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._finish = finish
        self._lock = threading.Lock()
        self._thread = ExitStack()
        self._portal: BlockingPortal | None = None
        # Who forgets `close`, or ends by an error, ends nevertheless: at exit this runs while the thread still does.
        weakref.finalize(self, self._thread.close)

    def start(self, function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> Future[T]:
        """Begin to run it. Cancelling what is returned cancels what runs."""
        with self._lock:
            if self._portal is None:
                self._portal = self._thread.enter_context(start_blocking_portal())
                self._thread.callback(self._portal.call, self._portal.stop, True)
                self._thread.callback(self._portal.call, self._finish)
        return self._portal.start_task_soon(function, *args)

    def run(self, function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
        return result_of(self.start(function, *args))

    def iterate(self, items: AsyncIterable[T]) -> Generator[T, None, None]:
        """Each item as it comes. One task reads them all, so that whoever stops iterating can end it at any moment."""
        arrived: SimpleQueue[tuple[T] | None] = SimpleQueue()

        async def read() -> None:
            try:
                async for item in items:
                    arrived.put((item,))
            finally:
                arrived.put(None)

        reading = self.start(read)
        try:
            while (given := arrived.get()) is not None:
                yield given[0]
            reading.result()  # raises what ended it
        finally:
            reading.cancel()

    def close(self) -> None:
        """End the thread, with all that still runs in it. Once more does nothing."""
        with self._lock:  # two that close at once would each take half of what there is to do
            self._thread.close()


def result_of(future: Future[T]) -> T:
    """Wait for it; who gives up waiting, as a Ctrl-C does, ends it."""
    try:
        return future.result()
    finally:
        future.cancel()
