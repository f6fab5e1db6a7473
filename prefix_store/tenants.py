"""Who may do what, and how much of it: tenants, their limits, their keys, and what a key proves.

Plain frozen values. Knows nothing of how or where they are kept, nor of the requests that are counted.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum

from prefix_store.errors import InvalidTenant, shown

LOCAL_TENANT = "default"  # whose everything is as long as no key was ever made
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Scope(StrEnum):
    """What a key opens: text generation; uploads and changes of tasks; every tenant's keys, limits and tasks."""

    GENERATE = "generate"
    TASKS = "tasks"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """`max_queued` counts rows that wait; None leaves it to the server, as None of the others means no limit."""

    max_tasks: int = 1_000
    max_bytes: int = 1 << 30
    uploads_per_minute: int = 60
    upload_burst: int = 100
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queued: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            number = getattr(self, limit.name)
            if number is not None and not (type(number) is int and 0 <= number < 2**63):
                raise InvalidTenant(f"{limit.name} is {number!r}; expected a whole number from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """`weight` is its share of a busy engine, in proportion to the others'."""

    name: str
    weight: float = 1.0
    limits: TenantLimits = field(default_factory=TenantLimits)
    disabled: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidTenant(
                f"'{shown(self.name)}' is no tenant's name: expected 1 to 128 letters, digits, '.', '_' or '-', "
                "the first a letter or a digit"
            )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InvalidTenant(f"the weight of '{shown(self.name)}' is {self.weight}; expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it may be shown: `key_id` is the visible part of the secret, which is not kept. Moments are in UTC."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whom a request comes from, by the key that it brought."""

    tenant: str
    scopes: frozenset[Scope]
    key_id: str
    weight: float
    limits: TenantLimits


def limits_text(limits: TenantLimits) -> str:
    return json.dumps(asdict(limits))


def limits_of(text: str) -> TenantLimits:
    return TenantLimits(**json.loads(text))
