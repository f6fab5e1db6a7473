"""The live view: server-sent events that tell what the engine's last steps did, at most ten a second."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.access import Access, Needs, principal_of
from server.answers import sse
from server.live_view import LiveView, sees_all
from server.openapi import STREAM, errors
from server.services import services_of
from server.stream import EventStream
from server.token_stream import error_event

MIN_INTERVAL = 0.1  # seconds between two events
MAX_IDLE = 1.0  # seconds after which an event comes even where no step has run

router = APIRouter(tags=["operations"])


@router.get(
    "/live",
    dependencies=[Depends(Needs())],
    responses={200: {"content": STREAM, "description": "Events"}, **errors(401, 429, 500, 503)},
    response_class=Response,
)
async def live(request: Request) -> Response:
    """What the engine does: an operator sees it all, a tenant's key its own tasks by name and others' rows unnamed."""
    services, events = services_of(request), _events(request)
    first = await anext(events)
    return EventStream(
        first,
        events,
        {},
        error_event=partial(error_event, request, services),
        on_end=lambda outcome: None,
    )


async def _events(request: Request) -> AsyncGenerator[bytes, None]:
    """The key is proved again for each event: one that was revoked watches no longer. Ends as any request does, since
    Ray replaces a replica once it has none; who watches asks again."""
    services = services_of(request)
    end = time.monotonic() + services.settings.request_timeout
    access: Access = request.app.state.access
    view = LiveView(services.live)
    with services.live.watched(principal_of(request).tenant) as changed:
        while True:
            principal = await access.principal(request.headers.get("authorization"))
            changed.clear()
            yield sse(view.event(principal, sees_all(principal, access.nobody), services.store.stats))
            if services.lifecycle.is_draining or time.monotonic() > end:
                return
            await asyncio.sleep(MIN_INTERVAL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MAX_IDLE):
                    await changed.wait()
