"""A stream of server-sent events whose source is always closed, however the stream ends, and whose end is told.

Knows ASGI. Knows nothing of tokens.
"""

from collections.abc import AsyncGenerator, Callable
from enum import StrEnum

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Outcome(StrEnum):
    """How a stream ended, whose status was 200 in any case."""

    COMPLETED = "completed"
    CLIENT_GONE = "client_gone"  # it left, or took nothing for too long
    ERROR = "error"  # its last event says which


class EventStream(StreamingResponse):
    """Sends `first` and then `events`; what these raise becomes the last event, by `error_event`.

    Closes them on the end and on a disconnect, which also ends who takes nothing; then `on_end` is called.
    """

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        error_event: Callable[[Exception], bytes],
        on_end: Callable[[Outcome], None],
    ) -> None:
        self._pieces = self._until_failure(first, events)
        super().__init__(self._pieces, headers={**SSE_HEADERS, **headers}, media_type="text/event-stream")
        self._events = events
        self._error_event = error_event
        self._on_end = on_end
        self._outcome = Outcome.CLIENT_GONE  # until it is known better

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(self._outcome)
            await self._pieces.aclose()
            await self._events.aclose()

    async def _until_failure(self, first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for piece in events:
                yield piece
            self._outcome = Outcome.COMPLETED
        except Exception as error:
            self._outcome = Outcome.ERROR
            yield self._error_event(error)
