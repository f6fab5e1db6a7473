"""Lets a request for rows in, or refuses it, before it is routed and before its body is read.

Knows which routes queue rows, who may call them, and how much room there is. Knows nothing of what is asked. Under ten
times the load nine of ten requests end here, on the cores that serve the tenth.
"""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.types import Scope

from prefix_store.tenants import Scope as KeyScope
from server.access import Needs, access_of, principal_of
from server.room import Place
from server.services import services_of

MAY_GENERATE = Needs(KeyScope.GENERATE)
PLACE = "place"  # in the state of a request that was let in


class Admission:
    """`routers`: those whose POST routes queue rows."""

    def __init__(self, *routers: APIRouter) -> None:
        self._routes = [route for router in routers for route in _post_routes(router.routes)]

    async def check(self, scope: Scope) -> None:
        """Count the request if it is one for rows, unless `check_at_once` has, and keep room for it: see `leave`.

        Raises `Unauthorized` or `Forbidden`, `Unavailable` or `Overloaded` where no new work is taken, `RateLimited`
        where the tenant has asked for too much.
        """
        route = None if PLACE in scope["state"] else self._route(scope)
        if route is None:
            return
        request = _request(scope, route)
        await MAY_GENERATE(request)
        _admit(request)

    def check_at_once(self, scope: Scope) -> None:
        """As `check`, but where something would have to be looked up first: that request is left to `check`."""
        route = self._route(scope)
        if route is None:
            return
        request = _request(scope, route)
        principal = access_of(request).known_principal(request.headers.get("authorization"))
        if principal is not None:
            MAY_GENERATE.admit(request, principal)
            _admit(request)

    def leave(self, scope: Scope) -> None:
        """The request has ended."""
        place: Place | None = scope["state"].get(PLACE)
        if place is not None:
            place.leave()

    def _route(self, scope: Scope) -> APIRoute | None:
        if scope["method"] != "POST":
            return None
        return next((route for route in self._routes if route.path_regex.match(scope["path"])), None)


async def counted(request: Request) -> None:
    """A dependency of routes that queue no rows: one of the tenant's requests a minute. Raises `RateLimited`."""
    services_of(request).limits.count(principal_of(request))


def place_of(request: Request) -> Place | None:
    """None where it is not one of those that `Admission` lets in."""
    place: Place | None = getattr(request.state, PLACE, None)
    return place


def _request(scope: Scope, route: APIRoute) -> Request:
    scope["route"] = route  # by which it is counted, should the router never see it
    return Request(scope)


def _admit(request: Request) -> None:
    services, principal = services_of(request), principal_of(request)
    services.check_open(principal)
    services.limits.admit(principal)
    place = Place(services.engine.room, principal.tenant)
    place.keep_for_body()
    request.scope["state"][PLACE] = place


def _post_routes(routes: Iterable[object]) -> list[APIRoute]:
    return [route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
