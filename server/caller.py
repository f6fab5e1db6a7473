"""Who waits for an answer, and since when. Knows nothing of what was asked."""

from dataclasses import dataclass

from fastapi import Request

from prefix_store.tenants import Principal
from server.access import principal_of
from server.http import arrived_at_of, request_id_of


@dataclass(frozen=True, slots=True)
class Caller:
    """`arrived_at` is `time.monotonic`'s."""

    principal: Principal
    request_id: str
    arrived_at: float

    @property
    def tenant(self) -> str:
        return self.principal.tenant


def caller_of(request: Request) -> Caller:
    return Caller(principal_of(request), request_id_of(request), arrived_at_of(request))
