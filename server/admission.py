"""Lets a request for rows in, or refuses it, before it is routed and before its body is read.

Knows which routes queue rows, who may call them, and how much room there is. Knows nothing of what is asked. Under ten
times the load nine of ten requests end here, on the cores that serve the tenth.
"""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.types import Scope

from prefix_store.tenants import Scope as KeyScope
from server.access import Needs, principal_of
from server.services import services_of

MAY_GENERATE = Needs(KeyScope.GENERATE)


class Admission:
    """`routers`: those whose POST routes queue rows."""

    def __init__(self, *routers: APIRouter) -> None:
        self._routes = [route for router in routers for route in _post_routes(router.routes)]

    async def check(self, scope: Scope) -> None:
        """Count the request if it is one for rows.

        Raises `Unauthorized` or `Forbidden`, `Unavailable` or `Overloaded` where no new work is taken, `RateLimited`
        where the tenant has asked for too much.
        """
        route = self._route(scope)
        if route is None:
            return
        scope["route"] = route  # by which it is counted, should the router never see it
        request = Request(scope)
        await MAY_GENERATE(request)
        services, principal = services_of(request), principal_of(request)
        services.check_open(principal)
        services.limits.admit(principal)

    def _route(self, scope: Scope) -> APIRoute | None:
        if scope["method"] != "POST":
            return None
        return next((route for route in self._routes if route.path_regex.match(scope["path"])), None)


def _post_routes(routes: Iterable[object]) -> list[APIRoute]:
    return [route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
