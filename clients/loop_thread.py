"""An event loop in a thread of its own, for callers that have none.

Knows threads. Knows nothing of what runs in the loop.
"""

import threading
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
from anyio.from_thread import BlockingPortal

T = TypeVar("T")
Args = TypeVarTuple("Args")


class LoopThread:
    """Runs from the first `start` to `close`, and `finish` as the last; safe to share between threads.

    The thread keeps no program from ending, nor a fork of it, that forgets `close`: nothing waits for it but that. It
    ends when this is garbage.
    """

    def __init__(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._finish = finish
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._portal: BlockingPortal | None = None

    def start(self, function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> Future[T]:
        """Begin to run it. Cancelling what is returned cancels what runs. Raises `RuntimeError` after `close`."""
        with self._lock:
            if self._portal is not None and self._thread is None:
                raise RuntimeError("this client is closed; make another one")
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                self._thread = threading.Thread(target=run_loop, args=[ready], name="polyprefix-client", daemon=True)
                self._thread.start()
                self._portal = ready.result()
                self._forgotten = weakref.finalize(self, wind_up, self._portal, self._finish)
                self._forgotten.atexit = False
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
        with self._lock:
            if self._thread is None or self._portal is None:
                return
            self._forgotten.detach()
            try:
                self._portal.call(self._finish)
            finally:
                self._portal.call(self._portal.stop, True)
                self._thread.join()
                self._thread = None


def run_loop(ready: Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except OSError as error:  # no file left for a loop
        if ready.done():
            raise
        ready.set_exception(error)


def wind_up(portal: BlockingPortal, finish: Callable[[], Awaitable[None]]) -> None:
    """End what the portal runs in, without waiting for it."""

    async def end() -> None:
        try:
            await finish()
        finally:
            await portal.stop(True)

    with suppress(RuntimeError):  # it has ended, or this is its own thread
        portal.start_task_soon(end)


def result_of(future: Future[T]) -> T:
    """Wait for it; who gives up waiting, as a Ctrl-C does, ends it."""
    try:
        return future.result()
    finally:
        future.cancel()
