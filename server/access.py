"""Who asks, and what that opens: from the Authorization header to a principal and its scopes.

Knows keys and scopes. Knows nothing of what the routes do, and never learns a tenant from anywhere but the key.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Iterable

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from prefix_store.errors import Unauthorized
from prefix_store.principals import MAX_SECONDS
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import LOCAL_TENANT, Principal, Scope, TenantLimits
from server.errors import Forbidden

NO_LIMIT = 2**62
# Everyone, on a server without keys. Not an operator: the first key is made where the store is, never over the network.
LOCAL = Principal(
    tenant=LOCAL_TENANT,
    scopes=frozenset({Scope.GENERATE, Scope.TASKS}),
    key_id="",
    weight=1.0,
    limits=TenantLimits(uploads_per_minute=NO_LIMIT, upload_burst=NO_LIMIT, max_queued=NO_LIMIT),
)


class Access:
    """Proves keys. `nobody` is whom a request without a key comes from; None where a key is needed.

    Once `tenants` holds a key, whoever made it, there is no nobody any more: within two seconds, as a revoked key is
    refused. Without `tenants` there never are keys.
    """

    def __init__(
        self, tenants: TenantRegistry | None, nobody: Principal | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tenants = tenants
        self.nobody = nobody
        self._clock = clock
        self._open_until = 0.0

    async def principal(self, authorization: str | None) -> Principal:
        """Raises `Unauthorized`. A key that was not seen within the last two seconds is looked up in a thread."""
        await self._look_for_keys()
        if self.nobody is not None:
            return self.nobody
        scheme, _, secret = (authorization or "").partition(" ")
        if self._tenants is None or scheme.lower() != "bearer" or not secret:
            raise Unauthorized
        remembered = self._tenants.remembered(secret)
        return await asyncio.to_thread(self._tenants.authenticate, secret) if remembered is None else remembered

    async def _look_for_keys(self) -> None:
        """Where none were two seconds ago, look again. A registry that cannot say leaves nothing open: it raises."""
        now = self._clock()
        if self.nobody is None or self._tenants is None or now < self._open_until:
            return
        if await asyncio.to_thread(self._tenants.has_keys):
            self.nobody = None
        self._open_until = now + MAX_SECONDS


class Needs(SecurityBase):
    """A route's dependency: a key that opens one of these scopes; any key where none is named.

    It runs before the body is read. `or_nobody`: open to everyone on a server without keys.
    """

    def __init__(self, *scopes: Scope, or_nobody: bool = False) -> None:
        self.model = HTTPBearer(description="An API key, `pp_…`; a server without keys asks for none")
        self.scheme_name = "key"
        self.scopes = frozenset(scopes)
        self._or_nobody = or_nobody

    async def __call__(self, request: Request) -> None:
        access: Access = request.app.state.access
        principal = await access.principal(request.headers.get("authorization"))
        is_open = not self.scopes or bool(principal.scopes & self.scopes)
        if not is_open and not (self._or_nobody and principal is access.nobody):
            raise Forbidden(f"this key opens {_named(principal.scopes)}; the route needs {_named(self.scopes)}")
        request.state.principal = principal


def principal_of(request: Request) -> Principal:
    """Whom the request comes from, on a route that `Needs` a key."""
    principal: Principal = request.state.principal
    return principal


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(scopes: Iterable[Scope]) -> str:
    return " or ".join(sorted(scopes))
