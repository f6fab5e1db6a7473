"""The two queues between the threads: one inbox for the engine, one mailbox for each open request.

Know waiting and order. Know nothing of what is in the letters.
"""

import asyncio
import contextlib
import threading
import time
from typing import TypeAlias

from batching.types import Abort, Compile, Compiled, Request, StepOutput

Work: TypeAlias = Request | Compile
Letter: TypeAlias = StepOutput | Compiled


class Inbox:
    """From the event loop to the engine thread. Knows since when it holds something that nobody took."""

    def __init__(self) -> None:
        self._items: list[Work | Abort | None] = []
        self._filled = threading.Condition()
        self.filled_at: float | None = None

    def put(self, *items: Work | Abort | None) -> None:
        """All items at once: the engine takes them in one turn."""
        with self._filled:
            self._items += items
            self.filled_at = self.filled_at or time.monotonic()
            self._filled.notify()

    def take(self, wait: bool) -> list[Work | Abort | None]:
        """All that is there; with `wait`, at least one item."""
        with self._filled:
            while wait and not self._items:
                self._filled.wait()
            items, self._items = self._items, []
            self.filled_at = None
            return items


class Mailbox:
    """One request's answers, on the event loop. A slow reader gets several at once, never fewer.

    `tenant` pays for them, with `num_rows` slots for each work.
    """

    def __init__(self, tenant: str, num_rows: int) -> None:
        self.tenant = tenant
        self.num_rows = num_rows
        self._letters: list[Letter] = []
        self._error: Exception | None = None
        self._filled = asyncio.Event()

    def put(self, letter: Letter) -> None:
        self._letters.append(letter)
        self._filled.set()

    def fail(self, error: Exception) -> None:
        """End the mailbox: after the letters that are in it, `take` raises `error`."""
        self._error = self._error or error
        self._filled.set()

    async def take(self, max_wait: float) -> list[Letter]:
        """All that has come, at least one; nothing when `max_wait` seconds brought none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max_wait):
                await self._filled.wait()
        letters, self._letters = self._letters, []
        if self._error is None:
            self._filled.clear()
        elif not letters:
            raise self._error
        return letters
