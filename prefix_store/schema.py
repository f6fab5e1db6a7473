"""The registry's tables, and how its database is opened.

Knows SQL and what SQLite needs to be durable. Knows nothing of what the rows mean.
"""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_SECONDS = 5.0  # how long a writer waits for another process's transaction


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, with its time zone, also where the database keeps none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("task_id", String(128), primary_key=True),
    Column("served_version", Integer, nullable=False),
    Column("config", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
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
    Column("backbone", String(64), nullable=False),
    Column("backbone_checked", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(["tenant", "task_id"], ["tasks.tenant", "tasks.task_id"]),
    # Before a file is removed the store asks whether any version still needs it.
    Index("versions_by_sha256", "tenant", "sha256"),
    Index("versions_by_native_sha256", "tenant", "native_sha256"),
)


def sqlite_url(path: Path) -> URL:
    """The URL of a database in a file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def open_database(url: str | URL) -> Engine:
    """An engine for `url`, its tables made where they are missing."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    metadata.create_all(engine)
    return engine


def for_writing(engine: Engine) -> Engine:
    """The same database, for transactions that read first and then write."""
    return engine.execution_options(sqlite_begin="IMMEDIATE")


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # sqlite3 would begin only at the first write, after what it was decided by
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # NORMAL does not sync the WAL: a commit could be lost with the power
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {begin}")
