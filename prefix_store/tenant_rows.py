"""The rows of tenants and keys: found, and turned into values.

Knows single statements on a connection that somebody else opened. Knows nothing of transactions or secrets.
"""

from datetime import datetime

from sqlalchemy import Connection, Table, insert, select, update

from prefix_store.errors import UnknownTenant
from prefix_store.records import Values, check, sealed
from prefix_store.schema import api_keys, moment_of, tenants
from prefix_store.tenants import ApiKey, Scope, Tenant, TenantLimits, limits_of, limits_text

_BEGINNING = "1970-01-01T00:00:00.000000+00:00"
# What is compared and checked in the place of a key and a tenant that are not there, so that it takes as long.
NO_KEY: Values = sealed(
    api_keys,
    {
        "key_id": "--------",
        "tenant": "",
        "secret_sha256": "-" * 64,
        "scopes": Scope.GENERATE.value,
        "created_at": _BEGINNING,
        "expires_at": _BEGINNING,
        "revoked_at": None,
        "last_used_at": None,
    },
)
NO_TENANT: Values = sealed(
    tenants,
    {
        "name": "nobody",
        "weight": 1.0,
        "limits": limits_text(TenantLimits()),
        "disabled": True,
        "created_at": _BEGINNING,
    },
)


def find(connection: Connection, table: Table, key: str, *, for_update: bool = False) -> Values | None:
    """The row of that primary key, as it is: not checked."""
    if not key.isprintable():  # NUL or half a surrogate pair, say, which no database takes
        return None
    (primary,) = table.primary_key
    found = select(table).where(primary == key)
    return connection.execute(found.with_for_update() if for_update else found).mappings().first()


def find_tenant(connection: Connection, name: str, *, for_update: bool = False) -> Values:
    """Raises `UnknownTenant`, `CorruptRecord`."""
    row = find(connection, tenants, name, for_update=for_update)
    if row is None:
        raise UnknownTenant(name)
    check(tenants, row)
    return row


def add(connection: Connection, table: Table, values: Values) -> Values:
    """Write a whole row, and return it with its checksum."""
    row = sealed(table, values)
    connection.execute(insert(table).values(row))
    return row


def rewrite(connection: Connection, table: Table, values: Values) -> Values:
    """Write a whole row anew, and return it with its new checksum."""
    (primary,) = table.primary_key
    row = sealed(table, values)
    connection.execute(update(table).where(primary == row[primary.name]).values(row))
    return row


def tenant_columns(tenant: Tenant) -> Values:
    """What a tenant's value says; the row has more."""
    return {
        "name": tenant.name,
        "weight": float(tenant.weight),
        "limits": limits_text(tenant.limits),
        "disabled": tenant.disabled,
    }


def tenant_of(row: Values) -> Tenant:
    """Raises `CorruptRecord`."""
    check(tenants, row)
    return Tenant(
        name=str(row["name"]),
        weight=float(str(row["weight"])),
        limits=limits_of(str(row["limits"])),
        disabled=bool(row["disabled"]),
    )


def api_key_of(row: Values) -> ApiKey:
    """Raises `CorruptRecord`."""
    check(api_keys, row)
    return ApiKey(
        key_id=str(row["key_id"]),
        tenant=str(row["tenant"]),
        scopes=frozenset(Scope(scope) for scope in str(row["scopes"]).split()),
        created_at=moment_of(str(row["created_at"])),
        expires_at=_moment(row["expires_at"]),
        revoked_at=_moment(row["revoked_at"]),
        last_used_at=_moment(row["last_used_at"]),
    )


def _moment(text: object) -> datetime | None:
    return None if text is None else moment_of(str(text))
