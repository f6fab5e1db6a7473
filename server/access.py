"""Who asks, and what that opens: from the Authorization header to a principal and its scopes.

Knows keys and scopes. Knows nothing of what the routes do, and never learns a tenant from anywhere but the key.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

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


class OpenAccess:
    """Asks for no key, and never will: every request comes from `nobody`."""

    def __init__(self, nobody: Principal) -> None:
        self.nobody = nobody

    async def principal(self, _authorization: str | None) -> Principal:
        return self.nobody

    def known_principal(self, _authorization: str | None) -> Principal:
        return self.nobody


class Access:
    """Proves keys. `nobody` is whom a request without a key comes from; None where a key is needed.

    Once `tenants` holds a key, whoever made it, there is no nobody any more: within two seconds, as a revoked key is
    refused.
    """

    def __init__(
        self, tenants: TenantRegistry, nobody: Principal | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tenants = tenants
        self.nobody = nobody
        self._clock = clock
        self._open_until = 0.0
        self._lookups: dict[tuple[str, int, int], asyncio.Task[Principal | None]] = {}

    async def principal(self, authorization: str | None) -> Principal:
        """Raises `Unauthorized`. A key that was not seen within the last two seconds is looked up in a thread."""
        known = self.known_principal(authorization)
        if known is None and self.nobody is not None:
            known = await asyncio.shield(self._look_up("", self._look_for_keys))
        if known is None:
            secret = _secret_of(authorization)
            known = await asyncio.shield(self._look_up(secret, lambda: self._prove(secret)))
            assert known is not None, "else it would have raised"
        return known

    def known_principal(self, authorization: str | None) -> Principal | None:
        """None where it must be looked up. What will have to be soon is, from now on. Raises `Unauthorized`."""
        if self.nobody is not None:
            seconds_left = self._open_until - self._clock()
            if seconds_left <= MAX_SECONDS / 2:
                self._look_up("", self._look_for_keys)
            return self.nobody if seconds_left > 0 else None
        secret = _secret_of(authorization)
        remembered = self._tenants.remembered(secret)
        if remembered is None:
            return None
        if remembered.is_due:
            self._look_up(secret, lambda: self._prove(secret))
        return remembered.principal

    def _look_up(
        self, secret: str, look: Callable[[], Coroutine[Any, Any, Principal | None]]
    ) -> asyncio.Task[Principal | None]:
        """Once for all who come within a second, and before a change here that it may have missed."""
        name = (secret, self._tenants.num_changes, int(self._clock() / (MAX_SECONDS / 2)))
        if name not in self._lookups:
            self._lookups[name] = asyncio.create_task(look())
            self._lookups[name].add_done_callback(lambda lookup: self._forget(name, lookup))
        return self._lookups[name]

    def _forget(self, name: tuple[str, int, int], lookup: asyncio.Task[Principal | None]) -> None:
        del self._lookups[name]
        if not lookup.cancelled():
            lookup.exception()  # whoever waited has it; where nobody did, the next one asks again

    async def _prove(self, secret: str) -> Principal:
        return await asyncio.to_thread(self._tenants.prove, secret)

    async def _look_for_keys(self) -> Principal | None:
        """Where none were two seconds ago, look again. A registry that cannot say leaves nothing open: it raises."""
        now = self._clock()
        if await asyncio.to_thread(self._tenants.has_keys):
            self.nobody = None
        self._open_until = now + MAX_SECONDS
        return self.nobody


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
        self.admit(request, await access_of(request).principal(request.headers.get("authorization")))

    def admit(self, request: Request, principal: Principal) -> None:
        """Note whom the request comes from. Raises `Forbidden`."""
        is_open = not self.scopes or bool(principal.scopes & self.scopes)
        if not is_open and not (self._or_nobody and principal is access_of(request).nobody):
            raise Forbidden(f"this key opens {_named(principal.scopes)}; the route needs {_named(self.scopes)}")
        request.state.principal = principal


def access_of(request: Request) -> Access | OpenAccess:
    access: Access | OpenAccess = request.app.state.access
    return access


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


def _secret_of(authorization: str | None) -> str:
    """Raises `Unauthorized`."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthorized
    return secret


def _named(scopes: Iterable[Scope]) -> str:
    return " or ".join(sorted(scopes))
