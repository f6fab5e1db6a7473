"""Tenants and their API keys, in the registry's database, and who it is that a key proves.

Knows rows and transactions. Knows nothing of requests, rates or tasks.
"""

import hmac
import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Lock

from sqlalchemy import select, update

from prefix_store.database import Database, lock_name
from prefix_store.errors import InvalidTenant, TenantExists, Unauthorized, UnknownKey
from prefix_store.keys import hash_of, key_id_of, new_key
from prefix_store.principals import Principals, Remembered
from prefix_store.records import check, is_sound
from prefix_store.schema import api_keys, moment_text, tenants
from prefix_store.tenant_rows import (
    NO_KEY,
    NO_TENANT,
    add,
    api_key_of,
    find,
    find_tenant,
    rewrite,
    tenant_columns,
    tenant_of,
)
from prefix_store.tenants import ApiKey, Principal, Scope, Tenant


def _now() -> datetime:
    return datetime.now(UTC)


class TenantRegistry:
    """Thread-safe; may wait for the disk, `remembered` excepted. Errors of the database: see `Database`; a damaged row
    raises `CorruptRecord`.

    What is changed here holds here at once, and in other processes within two seconds.
    """

    def __init__(
        self, database: Database, *, principals: Principals | None = None, now: Callable[[], datetime] = _now
    ) -> None:
        self._database = database
        self._principals = principals or Principals()
        self._now = now
        self._lock = Lock()  # held for dictionary operations only
        self._last_used: dict[str, datetime] = {}  # by key_id, not written yet
        self._flushing = Lock()

    def add_tenant(self, tenant: Tenant) -> None:
        """Raises `TenantExists`. A damaged record of the same name is written again."""
        row = {**tenant_columns(tenant), "created_at": moment_text(self._now())}
        with self._database.writing() as connection:
            lock_name(connection, "tenant", tenant.name)
            found = find(connection, tenants, tenant.name)
            if found is None:
                add(connection, tenants, row)
            elif is_sound(tenants, found):
                raise TenantExists(tenant.name)
            else:
                rewrite(connection, tenants, row)

    def change_tenant(self, name: str, change: Callable[[Tenant], Tenant]) -> Tenant:
        """Make of what is known of the tenant what `change` does; nobody changes it in between.

        Raises `UnknownTenant`, and what `change` does.
        """
        with self._database.writing() as connection:
            found = find_tenant(connection, name, for_update=True)
            changed = change(tenant_of(found))
            rewrite(connection, tenants, {**found, **tenant_columns(changed)})
        self._principals.forget()
        return changed

    def tenant(self, name: str) -> Tenant:
        """Raises `UnknownTenant`."""
        with self._database.reading() as connection:
            return tenant_of(find_tenant(connection, name))

    def tenants(self) -> list[Tenant]:
        """All of them, in the order of their names. A damaged record is left out."""
        with self._database.reading() as connection:
            rows = connection.execute(select(tenants).order_by(tenants.c.name)).mappings()
            return [tenant_of(row) for row in rows if is_sound(tenants, row)]

    def create_key(
        self, tenant: str, scopes: Iterable[Scope], expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """A new key, and its secret, which is not kept and cannot be shown again.

        A tenant may have several keys that are good at once, so that one can replace another without a gap.
        Raises `UnknownTenant`, `InvalidTenant` where there is no scope.
        """
        opened = frozenset(scopes)
        if not opened:
            raise InvalidTenant(f"a key without a scope opens nothing; expected some of {', '.join(Scope)}")
        new = new_key()
        row = {
            "key_id": new.key_id,
            "tenant": tenant,
            "secret_sha256": hash_of(new.secret),
            "scopes": " ".join(sorted(opened)),
            "created_at": moment_text(self._now()),
            "expires_at": None if expires_at is None else moment_text(expires_at),
            "revoked_at": None,
            "last_used_at": None,
        }
        with self._database.writing() as connection:
            find_tenant(connection, tenant)
            return api_key_of(add(connection, api_keys, row)), new.secret

    def revoke_key(self, key_id: str) -> ApiKey:
        """Refuse the key from now on; a second time changes nothing. Raises `UnknownKey`.

        A damaged record, which opens nothing as it is, becomes that of a key which never did: the row stays, as a
        server is open to all where no key was ever made.
        """
        with self._database.writing() as connection:
            found = find(connection, api_keys, key_id, for_update=True)
            if found is None:
                raise UnknownKey(key_id)
            sound = found if is_sound(api_keys, found) else {**NO_KEY, "key_id": key_id, "tenant": found["tenant"]}
            revoked_at = sound["revoked_at"] or moment_text(self._now())
            revoked = rewrite(connection, api_keys, {**sound, "revoked_at": revoked_at})
        self._principals.forget()
        return api_key_of(revoked)

    def keys(self, tenant: str) -> list[ApiKey]:
        """All that the tenant ever had, the oldest first. A damaged record is left out."""
        of_tenant = select(api_keys).where(api_keys.c.tenant == tenant).order_by(api_keys.c.created_at)
        with self._database.reading() as connection:
            return [api_key_of(row) for row in connection.execute(of_tenant).mappings() if is_sound(api_keys, row)]

    def has_keys(self) -> bool:
        """Whether a key was ever made, revoked ones included: once true, it stays so."""
        with self._database.reading() as connection:
            return connection.execute(select(api_keys.c.key_id).limit(1)).first() is not None

    @property
    def num_changes(self) -> int:
        """How many changes of keys and tenants were made here; what was asked before the last may be over."""
        return self._principals.num_changes

    def remembered(self, secret: str) -> Remembered | None:
        """Whom a key proves, if that was asked within the last two seconds; never waits for the disk."""
        remembered = self._principals.get(hash_of(secret))
        if remembered is not None:
            self._note_use(remembered.principal)
        return remembered

    def prove(self, secret: str) -> Principal:
        """Whom a key proves by the registry. Raises `Unauthorized`, for whatever reason in the same time."""
        secret_sha256 = hash_of(secret)
        principal = self._principals.read(secret_sha256, lambda: self._prove(secret, secret_sha256))
        self._note_use(principal)
        return principal

    def flush_last_used(self) -> None:
        """Write when each key was last used, all in one transaction; after an error it is kept for the next time."""
        with self._flushing:
            with self._lock:
                used = dict(self._last_used)
            with self._database.writing() as connection:
                for key_id, moment in sorted(used.items()):
                    of_key = update(api_keys).where(api_keys.c.key_id == key_id)
                    connection.execute(of_key.values(last_used_at=moment_text(moment)))
            with self._lock:
                self._last_used = {key: at for key, at in self._last_used.items() if used.get(key) != at}

    def _prove(self, secret: str, secret_sha256: str) -> tuple[Principal, float]:
        """The principal, and for how many seconds its key is good. Every key takes the same steps to its end."""
        with self._database.reading() as connection:
            key = find(connection, api_keys, key_id_of(secret)) or NO_KEY
            tenant = find(connection, tenants, str(key["tenant"])) or NO_TENANT
        check(api_keys, key)
        check(tenants, tenant)
        is_same = hmac.compare_digest(secret_sha256, str(key["secret_sha256"]))
        proved, owner = api_key_of(key), tenant_of(tenant)
        seconds_left = math.inf
        if proved.expires_at is not None:
            seconds_left = (proved.expires_at - self._now()).total_seconds()
        if not (is_same and seconds_left > 0 and proved.revoked_at is None and not owner.disabled):
            raise Unauthorized
        principal = Principal(
            tenant=owner.name, scopes=proved.scopes, key_id=proved.key_id, weight=owner.weight, limits=owner.limits
        )
        return principal, seconds_left

    def _note_use(self, principal: Principal) -> None:
        with self._lock:
            self._last_used[principal.key_id] = self._now()
