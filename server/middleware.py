"""Around every request: its id, its line in the log, its counts, headers for browsers, and an answer where it failed.

Pure ASGI, so that streams pass through untouched. Knows nothing of what the routes do.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.admission import Admission
from server.body_pace import PacedBody
from server.errors import INTERNAL, BadRequest, kind_of
from server.http import choose_request_id, error_response
from server.services import Services

CLIENT_LEFT = 499  # nginx' number for it; nobody is there to read it
MAX_UNREAD_BYTES = 64 << 10
PROBES = frozenset({"/health", "/ready", "/ping"})  # asked by address, by machines that know no name
BROWSER_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),  # unless an answer says otherwise
)
RawHeaders = Mapping[bytes, bytes]  # of a request; where two have one name, the last


class RequestMiddleware:
    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: RawHeaders = dict(scope["headers"])
        request_id = choose_request_id(headers.get(b"x-request-id"))
        arrived_at = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, arrived_at=arrived_at)
        services: Services = scope["app"].state.services
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *_missing_browser_headers(message["headers"]),
                ]
                if _is_much_unread(headers, paced):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        paced = PacedBody(receive, services.settings.body_timeout)
        try:
            _check_host(services, scope, headers)
            await self._admission.check(scope)
            await self._app(scope, paced, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:  # refused before the router, or our own failure
            if kind_of(error) is INTERNAL:
                services.log.error("request_failed", request_id=request_id, exc_info=error)
            if status:
                raise  # too late for an answer: the connection is cut, so that nobody takes half of one for whole
            await error_response(error, scope["path"], request_id)(scope, receive, send_with_id)
        finally:
            _record(services, scope, request_id, status or CLIENT_LEFT, time.monotonic() - arrived_at)


def _missing_browser_headers(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    names = {name for name, _ in headers}
    return ((name, value) for name, value in BROWSER_HEADERS if name not in names)


def _is_much_unread(headers: RawHeaders, body: PacedBody) -> bool:
    """Whether an answer comes before a body that is too large to be read for nothing, only to keep the connection."""
    is_much = b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > MAX_UNREAD_BYTES
    return is_much and not body.is_whole


def _check_host(services: Services, scope: Scope, headers: RawHeaders) -> None:
    """Raise `BadRequest` for a name that the operator does not know, which a page elsewhere may have invented."""
    names = services.settings.host_names
    if not names or scope["path"] in PROBES:
        return
    host = headers.get(b"host", b"").decode("latin-1")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.lower() not in names:
        raise BadRequest("this server does not answer to the name in the Host header")


def _record(services: Services, scope: Scope, request_id: str, status: int, seconds: float) -> None:
    route: Any = scope.get("route")
    template = getattr(route, "path", "unmatched")
    services.metrics.requests.labels(template, status).inc()
    services.metrics.request_seconds.observe(seconds)
    services.log.info(
        "request",
        request_id=request_id,
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(seconds * 1000, 3),
    )
