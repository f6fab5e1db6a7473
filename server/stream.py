"""A stream of server-sent events whose source is always closed, however the stream ends, and whose end is told.

Knows ASGI. Knows nothing of tokens.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from enum import StrEnum

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.alarm import Alarm

SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Outcome(StrEnum):
    """How a stream ended, whose status was 200 in any case."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"  # it left, or took nothing for too long
    ERROR = "error"  # its last event says which


class EventStream(StreamingResponse):
    """Sends `first` and then `events`; what these raise becomes the last event, by `error_event`.

    Closes them on the end, on a disconnect and where the reader takes nothing for a while; then `on_end` is called.
    """

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        error_event: Callable[[Exception], bytes],
        on_end: Callable[[Outcome], None],
        reader_stall_timeout: float,
    ) -> None:
        self._pieces = self._until_failure(first, events)
        super().__init__(self._pieces, headers={**SSE_HEADERS, **headers}, media_type="text/event-stream")
        self._events = events
        self._error_event = error_event
        self._on_end = on_end
        self._reader_stall_timeout = reader_stall_timeout
        self._outcome = Outcome.CLIENT_GONE  # until it is known better

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(self._outcome)
            await self._pieces.aclose()
            await self._events.aclose()

    async def stream_response(self, send: Send) -> None:
        """As the parent's, but a write that the reader holds up for too long ends the stream."""

        async def send_in_time(message: dict[str, object]) -> None:
            stall.set(self._reader_stall_timeout)
            await send(message)
            stall.unset()

        try:
            async with asyncio.timeout(None) as timeout:
                stall = Alarm(lambda: timeout.reschedule(asyncio.get_running_loop().time()))
                with contextlib.closing(stall):
                    await super().stream_response(send_in_time)  # type: ignore[arg-type]
        except TimeoutError:
            raise ClientDisconnect from None

    async def _until_failure(self, first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for piece in events:
                yield piece
            self._outcome = Outcome.COMPLETED
        except Exception as error:
            self._outcome = Outcome.ERROR
            yield self._error_event(error)
