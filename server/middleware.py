"""Around every request: its id, its line in the log, its counts, and an answer where a handler failed.

Pure ASGI, so that streams pass through untouched. Knows nothing of what the routes do.
"""

import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http import choose_request_id, error_response
from server.services import Services

CLIENT_LEFT = 499  # nginx' number for it; nobody is there to read it


class RequestMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except Exception as error:
            services.log.error("request_failed", request_id=request_id, exc_info=error)
            if status:
                raise  # too late for an answer: the connection is cut, so that nobody takes half of one for whole
            await error_response(error, request_id)(scope, receive, send_with_id)
        finally:
            _record(services, scope, request_id, status or CLIENT_LEFT, time.monotonic() - arrived_at)


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
