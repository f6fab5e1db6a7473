"""The JSON bodies of the operator's routes, read and written. Knows nothing of what they do."""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prefix_store.tenants import Scope
from prefix_store.usage import DailyUsage
from server.schemas import Closed

Name = Annotated[str, Field(min_length=1, max_length=128)]
Weight = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class LimitsBody(Closed):
    """What is left out stays, or is the default; a null takes the limit away, where there may be none."""

    max_tasks: Count = 1_000
    max_bytes: Count = 1 << 30
    uploads_per_minute: Count = 60
    upload_burst: Count = 100
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_queued: Count | None = None


class TenantBody(Closed):
    name: Name
    weight: Weight = 1.0
    limits: LimitsBody | None = None


class TenantPatch(Closed):
    weight: Weight | None = None
    disabled: bool | None = None
    limits: LimitsBody | None = None


class KeyBody(Closed):
    """`expires_at`: a moment with its time zone, ISO 8601."""

    tenant: Name
    scopes: Annotated[list[Literal["generate", "tasks", "operator"]], Field(min_length=1, max_length=3)]
    expires_at: str | None = None

    @field_validator("expires_at")
    @classmethod
    def _is_moment(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                datetime.fromisoformat(text).astimezone(UTC)
            except (ValueError, OverflowError):  # the latter at the calendar's ends
                raise ValueError("expected a moment such as 2030-01-31T12:00:00+00:00") from None
        return text


class BackupBody(Closed):
    path: Annotated[str, Field(min_length=1, max_length=1000)]


class FromAttributes(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class LimitsAnswer(FromAttributes):
    max_tasks: int
    max_bytes: int
    uploads_per_minute: int
    upload_burst: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_queued: int | None


class TenantAnswer(FromAttributes):
    name: str
    weight: float
    disabled: bool
    limits: LimitsAnswer


class TenantsAnswer(BaseModel):
    tenants: list[TenantAnswer]


class KeyAnswer(FromAttributes):
    """A key as it may be shown: `key_id` is the part after `pp_`."""

    key_id: str
    tenant: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeysAnswer(BaseModel):
    keys: list[KeyAnswer]


class NewKeyAnswer(KeyAnswer):
    secret: str


class DailyUsageAnswer(BaseModel):
    """`seconds` is how long rows ran, all of them added up."""

    task_id: str
    day: date
    requests: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float


class UsageAnswer(BaseModel):
    usage: list[DailyUsageAnswer]


class DamageAnswer(BaseModel):
    where: str
    what: str


class VerifyAnswer(BaseModel):
    damage: list[DamageAnswer]


class SweepAnswer(BaseModel):
    num_bytes: int


class BackupAnswer(BaseModel):
    path: str
    num_files: int
    left_out: list[str]


def daily_usage(found: Iterable[DailyUsage]) -> UsageAnswer:
    days = [
        DailyUsageAnswer(
            task_id=each.task_id,
            day=each.day,
            requests=each.usage.requests,
            prompt_tokens=each.usage.prompt_tokens,
            generated_tokens=each.usage.generated_tokens,
            seconds=each.usage.seconds,
        )
        for each in found
    ]
    return UsageAnswer(usage=days)
