"""The registry's tables, as the newest migration leaves them.

Knows columns. Knows nothing of what the rows mean. Moments are text (ISO 8601, UTC, microseconds) and settings are
JSON text, alike in every database, because a row's checksum is taken over its columns as they are stored.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    true,
)

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("task_id", String(128), primary_key=True),
    Column("served_version", Integer, nullable=False),
    Column("num_versions", Integer, nullable=False),
    Column("config", Text, nullable=False),
    Column("public", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("traffic", Text),
)
# One name means one public task.
Index(
    "public_tasks", tasks.c.task_id, unique=True, sqlite_where=tasks.c.public == true(), postgresql_where=tasks.c.public
)

versions = Table(
    "versions",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("task_id", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("sha256", String(64), nullable=False),
    Column("native_sha256", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("num_virtual_tokens", Integer, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("num_native_bytes", BigInteger, nullable=False),
    Column("backbone", String(64), nullable=False),
    Column("backbone_checked", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("quarantined", Text),
    Column("checksum", String(64), nullable=False),
    ForeignKeyConstraint(["tenant", "task_id"], ["tasks.tenant", "tasks.task_id"]),
    # Before a file is removed the store asks whether any version still needs it.
    Index("versions_by_sha256", "tenant", "sha256"),
    Index("versions_by_native_sha256", "tenant", "native_sha256"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("weight", Float(53), nullable=False),
    Column("limits", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checksum", String(64), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(8), primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False, index=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text),
    Column("revoked_at", Text),
    Column("last_used_at", Text),
    Column("checksum", String(64), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("task_id", Text, primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
)

# The last flush of each ledger, written with it: whether a flush whose commit failed did happen can be looked up.
usage_flushes = Table(
    "usage_flushes",
    metadata,
    Column("ledger", String(32), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What a bucket knows this registry by: one row, made when a bucket is first opened with it.
identity = Table("identity", metadata, Column("id", String(32), primary_key=True))


def moment_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def moment_of(text: str) -> datetime:
    return datetime.fromisoformat(text)
