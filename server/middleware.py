"""Around every request: its id, its line in the log, its counts, headers for browsers, and an answer where it failed.

Pure ASGI, so that streams pass through untouched. Knows nothing of what the routes do.
"""

import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
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
BROWSER_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",  # unless an answer says otherwise
}


class RequestMiddleware:
    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id"))
        arrived_at = time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, arrived_at=arrived_at)
        services: Services = scope["app"].state.services
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if _is_much_unread(scope, paced):
                    headers["connection"] = "close"
                for name, value in BROWSER_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        paced = PacedBody(receive, services.settings.body_timeout)
        try:
            _check_framing(scope)
            _check_host(services, scope)
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


def _is_much_unread(scope: Scope, body: PacedBody) -> bool:
    """Whether an answer comes before a body that is too large to be read for nothing, only to keep the connection."""
    headers = Headers(scope=scope)
    declared = headers.get("content-length", "0")
    is_much = "transfer-encoding" in headers or int(declared) > MAX_UNREAD_BYTES
    return is_much and not body.is_whole


def _check_framing(scope: Scope) -> None:
    """Raise `BadRequest` for two ways to tell a body's end: a proxy in front may have believed the other one."""
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers and "content-length" in headers:
        raise BadRequest("the request has both Content-Length and Transfer-Encoding; send one")


def _check_host(services: Services, scope: Scope) -> None:
    """Raise `BadRequest` for a name that the operator does not know, which a page elsewhere may have invented."""
    names = services.settings.host_names
    host = Headers(scope=scope).get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if names and scope["path"] not in PROBES and name.lower() not in names:
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
