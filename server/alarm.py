"""A moment that is put off again and again, as something comes that was waited for. Knows the event loop's clock.

One of the loop's timers stands for all of them: to start and cancel one for each token costs more than to read it.
"""

import asyncio
from collections.abc import Callable


class Alarm:
    """Made and used on the event loop. Calls `ring` once the seconds that it was last set to have passed.

    To be closed: it holds whom it wakes, who holds it, and such a ring of objects waits for the next full collection.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring: Callable[[], None] | None = ring
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """A timer that comes earlier is left alone: it will find that it is not time yet."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self._cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def unset(self) -> None:
        self._due = None

    def close(self) -> None:
        """It rings no more."""
        self._cancel()
        self._ring = None

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._due is not None and self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        elif self._due is not None and self._ring is not None:
            self._due = None
            self._ring()
