"""One mailbox for each open request's answers: each is read as it comes, and who waits is woken where it matters.

Knows waiting and order; knows nothing of what is in the letters.
"""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from server.alarm import Alarm
from server.engine_messages import Letter

Read: TypeAlias = Callable[[Letter], bool]


class Mailbox:
    """One request's answers, on the event loop.

    `read` takes each of them in as it comes, and tells whether who waits has something to do now: to wake a task costs
    several times what it costs to read a token. `tenant` pays for them, with `num_rows` slots for each work.
    """

    def __init__(self, tenant: str, num_rows: int, read: Read) -> None:
        self.tenant = tenant
        self.num_rows = num_rows
        self.has_begun = False  # whether anything has come
        self._read = read
        self._error: Exception | None = None
        self._alarm = Alarm(self._wake)
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()

    def put(self, letter: Letter) -> None:
        """Where it cannot be read, this mailbox fails, and no other."""
        self.has_begun = True
        if self._error is None:
            try:
                if self._read(letter):
                    self._wake()
            except Exception as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the mailbox: nothing more is read, and `wait` raises `error`."""
        self._error = self._error or error
        self._wake()

    async def wait(self, max_wait: float) -> None:
        """Until there is something to do, or for `max_wait` seconds. Raises what the mailbox ended with."""
        if self._error is None:
            self._alarm.set(max_wait)
            await self._woken
            self._alarm.unset()
            self._woken = self._loop.create_future()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Nobody waits any more."""
        self._alarm.close()

    def _wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)
