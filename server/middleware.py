"""Around every request: its id, its line in the log, its counts, headers for browsers, and an answer where it failed.

Pure ASGI, so that streams pass through untouched. Knows nothing of what the routes do.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefix_store.errors import Unauthorized
from server.admission import Admission
from server.body_pace import PacedBody
from server.errors import INTERNAL, BadRequest, ServerError, kind_of
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
        request_id, arrived_at = _begin(scope, headers)
        services: Services = scope["app"].state.services
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    *_own_headers(message["headers"], request_id, headers, is_body_whole=paced.is_whole),
                ]
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
            self._admission.leave(scope)
            _record(services, scope, request_id, status or CLIENT_LEFT, time.monotonic() - arrived_at)


class RefusalAtOnce:
    """What the middleware would refuse, as soon as a request's head has come and before anything is made for it.

    For a server's protocol to ask, where it can; the middleware refuses the rest.
    """

    def __init__(self, app: FastAPI, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    def __call__(self, scope: Scope, answer: Callable[[Response], None]) -> bool:
        """Whether the request was refused, and `answer` called. Where not, it is the application's, which may yet."""
        scope["app"] = self._app
        services: Services = self._app.state.services
        headers: RawHeaders = dict(scope["headers"])
        request_id, arrived_at = _begin(scope, headers)
        try:
            _check_host(services, scope, headers)
            self._admission.check_at_once(scope)
        except (ServerError, Unauthorized) as error:
            response = error_response(error, scope["path"], request_id)
        except Exception:
            return False  # our own failure: the middleware comes to it too, and tells of it
        else:
            return False
        response.raw_headers += _own_headers(response.raw_headers, request_id, headers, is_body_whole=False)
        answer(response)
        _record(services, scope, request_id, response.status_code, time.monotonic() - arrived_at)
        return True


def _begin(scope: Scope, headers: RawHeaders) -> tuple[str, float]:
    """The request's id, and when it came as `time.monotonic` counts; in its state, where they may stand already."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = choose_request_id(headers.get(b"x-request-id"))
    return state["request_id"], state.setdefault("arrived_at", time.monotonic())


def _own_headers(
    headers: Iterable[tuple[bytes, bytes]], request_id: str, asked: RawHeaders, *, is_body_whole: bool
) -> list[tuple[bytes, bytes]]:
    """What every answer says beside its own headers."""
    names = {name for name, _ in headers}
    own = [(b"x-request-id", request_id.encode())]
    own += [(name, value) for name, value in BROWSER_HEADERS if name not in names]
    if not is_body_whole and _has_large_body(asked):  # not to be read for nothing, only to keep the connection
        own.append((b"connection", b"close"))
    return own


def _has_large_body(headers: RawHeaders) -> bool:
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > MAX_UNREAD_BYTES


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
