"""A stream of server-sent events whose source is always closed, however the stream ends.

Knows ASGI. Knows nothing of tokens.
"""

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(StreamingResponse):
    """Sends `events`, and closes them on the end, on a disconnect and where the reader takes nothing for a while."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: dict[str, str], reader_stall_timeout: float
    ) -> None:
        super().__init__(events, headers={**SSE_HEADERS, **headers}, media_type="text/event-stream")
        self._events = events
        self._reader_stall_timeout = reader_stall_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()

    async def stream_response(self, send: Send) -> None:
        """As the parent's, but a write that the reader holds up for too long ends the stream."""

        async def send_in_time(message: dict[str, object]) -> None:
            try:
                async with asyncio.timeout(self._reader_stall_timeout):
                    await send(message)
            except TimeoutError:
                raise ClientDisconnect from None

        await super().stream_response(send_in_time)  # type: ignore[arg-type]
