"""Who waits for an answer, and since when. Knows nothing of what was asked."""

from dataclasses import dataclass

from fastapi import Request

from prefix_store.tenants import Principal
from server.access import principal_of
from server.admission import place_of
from server.http import arrived_at_of, request_id_of
from server.room import Place
from server.services import services_of


@dataclass(frozen=True, slots=True)
class Caller:
    """`arrived_at` is `time.monotonic`'s; `place` is what room the request has before its rows are queued."""

    principal: Principal
    request_id: str
    arrived_at: float
    place: Place

    @property
    def tenant(self) -> str:
        return self.principal.tenant


def caller_of(request: Request) -> Caller:
    principal = principal_of(request)
    place = place_of(request) or Place(services_of(request).engine.room, principal.tenant)
    return Caller(principal, request_id_of(request), arrived_at_of(request), place)
