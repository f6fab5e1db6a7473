"""A deadline for receiving a body, which no ASGI server keeps by itself.

Pure ASGI. Knows bytes and a clock; knows nothing of what the body is.
"""

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from server.errors import BodyTooSlow

GRACE = 5.0  # seconds before a body must keep the pace
MIN_BYTES_PER_SECOND = 16 << 10


class PacedBody:
    """`receive`, but a body must come within `timeout` and, after the grace, at no less than the least pace.

    Raises `BodyTooSlow`. Once the body is whole, waiting is free: what comes then is the client's leaving.
    """

    def __init__(self, receive: Receive, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._receive = receive
        self._timeout = timeout
        self._clock = clock
        self._started_at = 0.0
        self._has_started = False
        self._num_bytes = 0
        self.is_whole = False

    async def __call__(self) -> Message:
        if self.is_whole:
            return await self._receive()
        if not self._has_started:
            self._has_started, self._started_at = True, self._clock()
        try:
            async with asyncio.timeout(self.seconds_left):
                message = await self._receive()
        except TimeoutError:
            raise BodyTooSlow(self._num_bytes, self._clock() - self._started_at) from None
        self._num_bytes += len(message.get("body", b""))
        self.is_whole = not message.get("more_body", False)
        if self.seconds_left <= 0 and not self.is_whole:  # pieces that are there at once never time out
            raise BodyTooSlow(self._num_bytes, self._clock() - self._started_at)
        return message

    @property
    def seconds_left(self) -> float:
        """Until when the next piece must be there."""
        allowed = min(self._timeout, GRACE + self._num_bytes / MIN_BYTES_PER_SECOND)
        return self._started_at + allowed - self._clock()
