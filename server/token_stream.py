"""Rows that run, as a stream of server-sent events in some dialect.

Knows when something is written, and what is when nothing is. Knows no dialect.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Protocol

from fastapi import Request
from fastapi.responses import Response

from server.answers import first_headers, sse
from server.error_bodies import error_body
from server.errors import INTERNAL, kind_of
from server.http import request_id_of, unless_disconnected
from server.reading import Added, Sample
from server.running import run_streaming
from server.services import Services
from server.stream import EventStream

KEEP_ALIVE = b": keep-alive\n\n"
LONG_TURN = 0.005  # seconds of the event loop


class Events(Protocol):
    """How a dialect writes what a step added to the rows, and the end of the stream; nothing may be to write."""

    def of_step(self, added: Added) -> bytes: ...
    def at_end(self) -> bytes: ...


async def stream_rows(request: Request, services: Services, samples: Sequence[Sample], events: Events) -> Response:
    """The 200 goes out with the first token: an error before it is an answer like any other."""
    pieces = _pieces(services, samples, events)
    first = await unless_disconnected(request, _first(pieces))
    return EventStream(
        first,
        pieces,
        first_headers(samples),
        error_event=partial(error_event, request, services),
        on_end=lambda outcome: services.metrics.streams.labels(outcome).inc(),
    )


async def _pieces(services: Services, samples: Sequence[Sample], events: Events) -> AsyncGenerator[bytes, None]:
    """What can be written at once is one piece: a slow reader gets several events in it, never fewer."""
    steps = run_streaming(services, samples)
    try:
        async for added in steps:
            yield await _written(events, added) or KEEP_ALIVE
        if end := events.at_end():
            yield end
    finally:
        await steps.aclose()


async def _written(events: Events, added: Added) -> bytes:
    """Rows that tell their prompts back with scores take long at their first tokens: others come in between."""
    pieces, since = [], time.monotonic()
    for sample, tokens in added.items():
        pieces.append(events.of_step({sample: tokens}))
        if time.monotonic() - since > LONG_TURN:
            await asyncio.sleep(0)
            since = time.monotonic()
    return b"".join(pieces)


async def _first(pieces: AsyncGenerator[bytes, None]) -> bytes:
    """The first piece that is not a keep-alive."""
    try:
        async for piece in pieces:
            if piece is not KEEP_ALIVE:
                return piece
    except BaseException:
        await pieces.aclose()
        raise
    raise AssertionError("a row that ended without a token and without an error")


def error_event(request: Request, services: Services, error: Exception) -> bytes:
    """What goes wrong after the 200 is told by the stream's last event."""
    request_id = request_id_of(request)
    if kind_of(error) is INTERNAL:
        services.log.error("stream_failed", request_id=request_id, exc_info=error)
    return sse(error_body(error, request.url.path, request_id))
