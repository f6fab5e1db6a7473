"""One mailbox for each open request's answers. Knows waiting and order; knows nothing of what is in the letters."""

import asyncio
import contextlib

from server.engine_messages import Letter


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
