"""Which tasks there are, their versions, and which version each serves: the store's memory, in a SQL database.

Knows rows and transactions, in SQLite or whatever the URL names. Knows nothing of files or of what is in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import URL, Connection, Row, Select, delete, func, insert, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefix_store.errors import (
    CommitUncertain,
    OutOfSpace,
    PreconditionFailed,
    StaleVersion,
    StoreUnavailable,
    UnknownTask,
    UnknownVersion,
)
from prefix_store.names import is_task_id
from prefix_store.schema import for_writing, open_database, tasks, versions
from prefix_store.tasks import Published, Task, TaskConfig, TaskVersion, Upload

_SQLITE_FULL = 13  # sqlite3.SQLITE_FULL: an insert or the log ran out of disk
_MAX_VERSION = 2**31 - 1  # SQL's INTEGER; the driver raises on more

AnyRow = Row[tuple[object, ...]]


class Registry:
    """Thread-safe. Every writing method is one transaction, durable when it returns.

    `if_match` is the sha256 that the served version's upload must have, or `*` for any. `fingerprint` is that of the
    served backbone; versions of another one are stale. Errors of the database itself: `OutOfSpace`,
    `StoreUnavailable`, and of the latter `CommitUncertain`.
    """

    def __init__(self, url: str | URL, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        with _database_errors():
            self._engine = open_database(url)
        self._writing_engine = for_writing(self._engine)

    def publish(
        self, tenant: str, task_id: str, upload: Upload, *, if_match: str | None = None, if_none_match: bool = False
    ) -> Published:
        """Serve `upload`: as it is where it is served already, as its old version where it was, else as a new one.

        Raises `PreconditionFailed`; `if_none_match` wants that there is no such task.
        """
        with self._writing() as connection:
            task = _find_task(connection, tenant, task_id, for_update=True)
            served_sha256 = self._served_sha256(connection, task)
            if if_none_match and task is not None:
                raise PreconditionFailed("no task", served_sha256)
            _check_match(if_match, served_sha256)
            config = TaskConfig() if task is None else TaskConfig(**task.config)
            same = self._find_same(connection, tenant, task_id, upload)
            if task is not None and same is not None:
                _update_task(connection, tenant, task_id, served_version=same.version)
                return Published(same, config, created_task=False, changed=same.version != task.served_version)
            version = self._add_version(connection, tenant, task_id, upload, is_first=task is None)
            return Published(version, config, created_task=task is None, changed=True)

    def task(self, tenant: str, task_id: str) -> Task:
        with self._reading() as connection:
            return self._whole_task(connection, tenant, task_id)

    def tasks(self, tenant: str, limit: int, after: str | None) -> list[Task]:
        """Up to `limit` tasks in the order of their ids, those behind `after` only."""
        page = select(tasks).where(tasks.c.tenant == tenant).order_by(tasks.c.task_id).limit(limit)
        if after is not None:
            page = page.where(tasks.c.task_id > after)
        with self._reading() as connection:
            rows = connection.execute(page).all()
            by_task: dict[str, list[TaskVersion]] = {row.task_id: [] for row in rows}
            of_page = select(versions).where(versions.c.tenant == tenant, versions.c.task_id.in_(by_task))
            for row in connection.execute(of_page.order_by(versions.c.version)):
                by_task[row.task_id].append(self._version(row))
        return [_task(row, by_task[row.task_id]) for row in rows]

    def served(self, tenant: str, task_id: str) -> tuple[TaskVersion, TaskConfig]:
        """What a request for the task gets. Raises `UnknownTask`."""
        with self._reading() as connection:
            task = _task_row(connection, tenant, task_id)
            return self._find_version(connection, tenant, task_id, task.served_version), TaskConfig(**task.config)

    def version(self, tenant: str, task_id: str, version: int) -> TaskVersion:
        """Raises `UnknownTask`, `UnknownVersion`."""
        with self._reading() as connection:
            _task_row(connection, tenant, task_id)
            return self._find_version(connection, tenant, task_id, version)

    def use_version(self, tenant: str, task_id: str, version: int, if_match: str | None) -> Task:
        """Raises `UnknownTask`, `UnknownVersion`, `StaleVersion`, `PreconditionFailed`."""
        with self._writing() as connection:
            task = _task_row(connection, tenant, task_id, for_update=True)
            _check_match(if_match, self._served_sha256(connection, task))
            wanted = self._find_version(connection, tenant, task_id, version)
            if wanted.stale:
                raise StaleVersion(task_id, version, wanted.backbone, self._fingerprint)
            _update_task(connection, tenant, task_id, served_version=version)
            return self._whole_task(connection, tenant, task_id)

    def set_config(self, tenant: str, task_id: str, config: TaskConfig) -> Task:
        """Raises `UnknownTask`."""
        with self._writing() as connection:
            _task_row(connection, tenant, task_id, for_update=True)
            _update_task(connection, tenant, task_id, config=asdict(config))
            return self._whole_task(connection, tenant, task_id)

    def delete(self, tenant: str, task_id: str, if_match: str | None) -> Task:
        """Remove the task and its versions, and return what it was. Raises `UnknownTask`, `PreconditionFailed`."""
        with self._writing() as connection:
            _task_row(connection, tenant, task_id, for_update=True)
            task = self._whole_task(connection, tenant, task_id)
            _check_match(if_match, task.served.sha256)
            for table in (versions, tasks):
                connection.execute(delete(table).where(table.c.tenant == tenant, table.c.task_id == task_id))
            return task

    def needs(self, tenant: str, sha256: str) -> bool:
        """Whether any version of the tenant's has a file of this hash."""
        of_hash = or_(versions.c.sha256 == sha256, versions.c.native_sha256 == sha256)
        needing = select(versions.c.version).where(versions.c.tenant == tenant, of_hash).limit(1)
        with self._reading() as connection:
            return connection.execute(needing).first() is not None

    def ping(self) -> None:
        with self._reading() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _database_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _database_errors(), self._writing_engine.connect() as connection:
            transaction = connection.begin()
            yield connection  # after an error the connection is closed with the transaction open, which undoes it
            try:
                transaction.commit()
            except DBAPIError as error:
                if _is_full(error):
                    raise
                raise CommitUncertain(f"the registry failed while it committed: {error.orig}") from error

    def _whole_task(self, connection: Connection, tenant: str, task_id: str) -> Task:
        row = _task_row(connection, tenant, task_id)
        rows = connection.execute(_of_task(tenant, task_id).order_by(versions.c.version))
        return _task(row, [self._version(version) for version in rows])

    def _served_sha256(self, connection: Connection, task: AnyRow | None) -> str | None:
        if task is None:
            return None
        return self._find_version(connection, task.tenant, task.task_id, task.served_version).sha256

    def _find_version(self, connection: Connection, tenant: str, task_id: str, version: int) -> TaskVersion:
        if not 1 <= version <= _MAX_VERSION:
            raise UnknownVersion(task_id, version)
        row = connection.execute(_of_task(tenant, task_id).where(versions.c.version == version)).first()
        if row is None:
            raise UnknownVersion(task_id, version)
        return self._version(row)

    def _find_same(self, connection: Connection, tenant: str, task_id: str, upload: Upload) -> TaskVersion | None:
        """The version with the same bytes, made for the same backbone: a stale one is no help to who uploads anew."""
        same = (versions.c.sha256 == upload.sha256) & (versions.c.backbone == upload.backbone)
        row = connection.execute(_of_task(tenant, task_id).where(same)).first()
        return None if row is None else self._version(row)

    def _add_version(
        self, connection: Connection, tenant: str, task_id: str, upload: Upload, is_first: bool
    ) -> TaskVersion:
        last = select(func.max(versions.c.version)).where(versions.c.tenant == tenant, versions.c.task_id == task_id)
        number = 1 + (connection.scalar(last) or 0)
        if is_first:
            task = {"served_version": number, "config": asdict(TaskConfig()), "created_at": datetime.now(UTC)}
            connection.execute(insert(tasks).values(tenant=tenant, task_id=task_id, **task))
        else:
            _update_task(connection, tenant, task_id, served_version=number)
        connection.execute(insert(versions).values(tenant=tenant, task_id=task_id, version=number, **asdict(upload)))
        return TaskVersion(**asdict(upload), version=number, stale=upload.backbone != self._fingerprint)

    def _version(self, row: AnyRow) -> TaskVersion:
        facts = {name: value for name, value in row._mapping.items() if name not in ("tenant", "task_id")}
        return TaskVersion(**facts, stale=row.backbone != self._fingerprint)


def _find_task(connection: Connection, tenant: str, task_id: str, for_update: bool = False) -> AnyRow | None:
    if not is_task_id(task_id):  # half a surrogate pair, say, which no database takes
        return None
    found = select(tasks).where(tasks.c.tenant == tenant, tasks.c.task_id == task_id)
    if for_update:  # nobody else writes the task until this transaction ends; SQLite has one writer at a time anyway
        found = found.with_for_update()
    return connection.execute(found).first()


def _task_row(connection: Connection, tenant: str, task_id: str, for_update: bool = False) -> AnyRow:
    row = _find_task(connection, tenant, task_id, for_update)
    if row is None:
        raise UnknownTask(task_id)
    return row


def _of_task(tenant: str, task_id: str) -> Select[tuple[object, ...]]:
    return select(versions).where(versions.c.tenant == tenant, versions.c.task_id == task_id)


def _update_task(connection: Connection, tenant: str, task_id: str, **values: object) -> None:
    of_task = update(tasks).where(tasks.c.tenant == tenant, tasks.c.task_id == task_id)
    connection.execute(of_task.values(**values))


def _task(row: AnyRow, of_task: list[TaskVersion]) -> Task:
    return Task(row.task_id, row.served_version, tuple(of_task), TaskConfig(**row.config), row.created_at)


def _check_match(if_match: str | None, served_sha256: str | None) -> None:
    if if_match is None or (if_match == "*" and served_sha256 is not None) or if_match == served_sha256:
        return
    raise PreconditionFailed(if_match, served_sha256)


def _is_full(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_FULL


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if _is_full(error):
            raise OutOfSpace("the registry's disk is full; nothing was kept") from error
        raise StoreUnavailable(f"the registry failed: {error.orig}") from error
    except PoolTimeout as error:
        raise StoreUnavailable(f"the registry is too busy: {error}") from error
