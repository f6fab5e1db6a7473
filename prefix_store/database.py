"""The registry's database: how it is opened, its transactions, and what its failures become.

Knows SQLAlchemy, what SQLite needs to be durable and PostgreSQL to be shared. Knows nothing of the tables.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from sqlite3 import Error as SqliteError
from sqlite3 import connect
from urllib.parse import parse_qsl

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from prefix_store.disk import fsync_directory, os_errors
from prefix_store.errors import CommitUncertain, OutOfSpace, StoreUnavailable, UnsuitablePlace
from prefix_store.migrations import upgrade

BUSY_SECONDS = 5.0  # how long a writer waits for another process's transaction
_SQLITE_FULL = 13  # sqlite3.SQLITE_FULL: an insert or the log ran out of disk
# SQLITE_READONLY, _IOERR, _CANTOPEN. Above all the first: where a file cannot be opened for writing, because there are
# too many open files for a moment, say, SQLite opens it for reading, and the connection can never write.
_SQLITE_BROKEN = {8, 10, 14}
_POSTGRESQL_FULL = "53100"  # SQLSTATE disk_full
# That a server which does not answer is told from a slow one in seconds. Any of it can be set in the URL.
_POSTGRESQL_DEFAULTS = {
    "client_encoding": "utf8",  # in a database of SQL_ASCII texts would come as bytes
    "connect_timeout": "2",
    "tcp_user_timeout": "5000",
    "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
}
_OUTAGE_SECONDS = 1.0  # after a failure to connect, for how long no other tries: each try takes a thread its time
_NUM_CONNECTIONS = 8  # of one process to PostgreSQL. They stay: one that is made anew for a request is slow under load


class Database:
    """Thread-safe. `url` is an SQLAlchemy URL of SQLite or PostgreSQL; its tables are made or brought up to date.

    Raises `SchemaTooNew` and `UnsuitablePlace` at opening, `OutOfSpace` and `StoreUnavailable`, and of the latter
    `CommitUncertain`.
    """

    def __init__(self, url: str | URL) -> None:
        self._closed_until = 0.0  # to new connections; those that there are may still be well
        with self._errors():
            self._engine = _engine(url)
            self._is_sqlite = self._engine.dialect.name == "sqlite"
            if self._is_sqlite:
                event.listen(self._engine, "connect", _prepare_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
                event.listen(self._engine, "handle_error", _distrust_connection)
            else:
                event.listen(self._engine, "do_connect", self._check_open)
        # SQLite reads a snapshot anyway, PostgreSQL when it is asked to. Transactions that read first and then write
        # have to be writers from their beginning in SQLite; PostgreSQL's lock the rows that they read.
        snapshot = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reading_engine: Engine = self._engine.execution_options(**snapshot)
        self._held: PoolProxiedConnection | None = None
        self._writing_engine: Engine = self._engine.execution_options(sqlite_begin="IMMEDIATE")
        try:
            with self.writing() as connection:
                upgrade(connection)
            self._hold_log()
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view, whatever others write meanwhile."""
        with self._errors(), self._reading_engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, durable when it is left; undone if the body raises."""
        with self._errors(), self._writing_engine.connect() as connection:
            transaction = connection.begin()
            yield connection  # after an error the connection is closed with the transaction open, which undoes it
            try:
                transaction.commit()
            except DBAPIError as error:
                if _is_full(error):
                    raise
                raise CommitUncertain(f"the registry failed while it committed: {error.orig}") from error

    def problems(self) -> list[str]:
        """What the database says of its own pages and indexes; PostgreSQL tells its operator itself."""
        if not self._is_sqlite:
            return []
        with self.reading() as connection:
            told = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
        return [] if told == ["ok"] else told

    def copy_to(self, path: Path) -> None:
        """A consistent copy of an SQLite database, as one file; raises `StoreUnavailable` for another kind, and
        `OutOfSpace`."""
        if not self._is_sqlite:
            kind = self._engine.dialect.name
            raise StoreUnavailable(f"the registry is in {kind}: back it up with that database's own tools")
        with self.reading() as connection, closing(connect(path)) as copy:
            original = connection.connection.driver_connection
            assert isinstance(original, SqliteConnection)
            original.backup(copy)

    def _hold_log(self) -> None:
        """Make sure that SQLite's log, which holds the newest commits, has its place in the folder for good.

        SQLite syncs the folder when it begins a log, and ignores that failing. So it is synced here, and a connection
        is held that keeps the log from being removed and begun anew.
        """
        path = self._engine.url.database
        if self._is_sqlite and path:
            with os_errors(f"opening {path}"):
                self._held = self._engine.raw_connection()
                fsync_directory(Path(path).parent)

    def _check_open(self, *_: object) -> None:
        if time.monotonic() < self._closed_until:
            raise StoreUnavailable("the registry could not be reached a moment ago")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if _is_full(error):
                raise OutOfSpace("the registry's disk is full; nothing was kept") from error
            if not self._is_sqlite and error.statement is None:  # a connection could not be made
                self._closed_until = time.monotonic() + _OUTAGE_SECONDS
            raise StoreUnavailable(f"the registry failed: {error.orig}") from error
        except SqliteError as error:  # of what sqlite3 does without SQLAlchemy: a copy
            if getattr(error, "sqlite_errorcode", 0) == _SQLITE_FULL:
                raise OutOfSpace(f"the registry was not copied: {error}") from error
            raise StoreUnavailable(f"the registry was not copied: {error}") from error
        except UnicodeDecodeError as error:  # sqlite3, where the damage is in what it wants to say of it
            raise StoreUnavailable(f"the registry is damaged: {error}") from error
        except PoolTimeout as error:
            raise StoreUnavailable(f"the registry is too busy: {error}") from error

    def ping(self) -> None:
        with self.reading() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
        self._engine.dispose()


def lock_name(connection: Connection, *name: str) -> None:
    """Until the transaction ends nobody else gets past here with this name: for what is looked for before it is added,
    so that there is no row to lock. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        digest = hashlib.sha256("\0".join(name).encode()).digest()
        connection.execute(select(func.pg_advisory_xact_lock(int.from_bytes(digest[:8], signed=True))))


def sqlite_url(path: Path) -> URL:
    """The URL of a database in a file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path))


def _engine(url: str | URL) -> Engine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port; never repeated, it may hold a password
        parsed = URL.create("unreadable")
    try:
        if parsed.drivername == "postgresql+psycopg":
            # The ping replaces connections that a restart of the database has cut.
            with_patience = parsed.set(query={**_POSTGRESQL_DEFAULTS, **_blank(str(url)), **parsed.query})
            pool = {"pool_size": _NUM_CONNECTIONS, "max_overflow": 0, "pool_timeout": 5}
            return create_engine(with_patience, pool_pre_ping=True, **pool)
        if parsed.drivername == "sqlite":
            return create_engine(parsed)
    except ModuleNotFoundError as error:
        raise UnsuitablePlace("the registry needs psycopg: pip install 'polyprefix[cloud]'") from error
    raise UnsuitablePlace("that is no registry's URL; expected postgresql+psycopg://user@host/database")


def _blank(url: str) -> dict[str, str]:
    """What a URL sets to nothing, `?options=`: SQLAlchemy reads it as if it were not there."""
    given = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    return {name: value for name, value in given if not value}


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # sqlite3 would begin only at the first write, after what it was decided by
    connection.text_factory = _any_text
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # NORMAL does not sync the WAL: a commit could be lost with the power
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")


def _any_text(raw: bytes) -> str:
    # A flipped bit may leave bytes that are no UTF-8. The row's checksum is there to tell; it has to see the row.
    return raw.decode("utf-8", "surrogateescape")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {begin}")


def _distrust_connection(context: ExceptionContext) -> None:
    # The pool closes a connection that was cut off, and does not hand it out again.
    code = getattr(context.original_exception, "sqlite_errorcode", 0)
    if code & 0xFF in _SQLITE_BROKEN:
        context.is_disconnect = True


def _is_full(error: DBAPIError) -> bool:
    codes = (getattr(error.orig, name, None) for name in ("sqlite_errorcode", "sqlstate"))
    return any(code in (_SQLITE_FULL, _POSTGRESQL_FULL) for code in codes)
