"""The rows of tasks and versions: found, checked, and turned into values.

Knows single statements on a connection that somebody else opened. Knows nothing of transactions or of what is allowed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import Connection, Select, Table, insert, select, update

from prefix_store.errors import CorruptRecord, UnknownTask, UnknownVersion
from prefix_store.names import is_task_id
from prefix_store.records import AnyRow, checked, is_sound, key_of, resealed, sealed
from prefix_store.schema import moment_of, moment_text, tasks, versions
from prefix_store.tasks import Task, TaskConfig, TaskVersion, Upload

_MAX_VERSION = 2**31 - 1  # SQL's INTEGER; the driver raises on more


def find_task(connection: Connection, tenant: str, task_id: str, *, for_update: bool = False) -> AnyRow | None:
    if not is_task_id(task_id):  # half a surrogate pair, say, which no database takes
        return None
    found = select(tasks).where(tasks.c.tenant == tenant, tasks.c.task_id == task_id)
    if for_update:  # nobody else writes the task until this transaction ends; SQLite has one writer at a time anyway
        found = found.with_for_update()
    row = connection.execute(found).first()
    return None if row is None else checked(tasks, row)


def find_public_task(connection: Connection, task_id: str) -> AnyRow | None:
    if not is_task_id(task_id):
        return None
    row = connection.execute(select(tasks).where(tasks.c.public, tasks.c.task_id == task_id)).first()
    return None if row is None else checked(tasks, row)


def task_row(connection: Connection, tenant: str, task_id: str, *, for_update: bool = False) -> AnyRow:
    """The tenant's own task. Raises `UnknownTask`."""
    row = find_task(connection, tenant, task_id, for_update=for_update)
    if row is None:
        raise UnknownTask(task_id)
    return row


def visible_task_row(connection: Connection, tenant: str, task_id: str) -> AnyRow:
    """The tenant's own task, else the public one. Raises `UnknownTask`."""
    row = find_task(connection, tenant, task_id) or find_public_task(connection, task_id)
    if row is None:
        raise UnknownTask(task_id)
    return row


def of_task(tenant: str, task_id: str) -> Select[tuple[object, ...]]:
    return select(versions).where(versions.c.tenant == tenant, versions.c.task_id == task_id)


def version_row(connection: Connection, tenant: str, task_id: str, version: int) -> AnyRow:
    """Raises `UnknownVersion`."""
    found = of_task(tenant, task_id).where(versions.c.version == version)
    row = connection.execute(found).first() if 1 <= version <= _MAX_VERSION else None
    if row is None:
        raise UnknownVersion(task_id, version)
    return checked(versions, row)


def served_version_row(connection: Connection, task: AnyRow) -> AnyRow:
    """The row of the version that a task serves, which has to be there."""
    try:
        return version_row(connection, task.tenant, task.task_id, task.served_version)
    except UnknownVersion as error:
        raise CorruptRecord("versions", f"{task.tenant}/{task.task_id}/{task.served_version}") from error


def add_task(connection: Connection, tenant: str, task_id: str, config: TaskConfig) -> None:
    """A task that serves its version 1, which has to be added with it."""
    row = {
        "tenant": tenant,
        "task_id": task_id,
        "served_version": 1,
        "num_versions": 1,
        "config": config_text(config),
        "public": False,
        "created_at": moment_text(datetime.now(UTC)),
        "traffic": None,
    }
    connection.execute(insert(tasks).values(sealed(tasks, row)))


def add_version(connection: Connection, tenant: str, task_id: str, version: int, upload: Upload) -> None:
    columns = {**asdict(upload), "created_at": moment_text(upload.created_at)}
    row = sealed(versions, {"tenant": tenant, "task_id": task_id, "version": version, **columns, "quarantined": None})
    connection.execute(insert(versions).values(row))


def change(connection: Connection, table: Table, row: AnyRow, **changes: object) -> None:
    """Write a row anew, with a new checksum."""
    this = [column == row._mapping[column.name] for column in table.primary_key]
    connection.execute(update(table).where(*this).values(resealed(table, row, changes)))


def version_of(row: AnyRow, fingerprint: str) -> TaskVersion:
    facts = {name: fact for name, fact in row._mapping.items() if name not in ("tenant", "task_id", "checksum")}
    facts["created_at"] = moment_of(row.created_at)
    return TaskVersion(**facts, stale=row.backbone != fingerprint)


def task_of(row: AnyRow, version_rows: Iterable[AnyRow], fingerprint: str) -> Task:
    """Raises `CorruptRecord` where any of its rows is damaged or missing."""
    task = sound_part_of(row, [checked(versions, version) for version in version_rows], fingerprint)
    if [version.version for version in task.versions] != list(range(1, row.num_versions + 1)):
        raise CorruptRecord("versions", key_of(tasks, row._mapping))
    return task


def sound_part_of(row: AnyRow, version_rows: Iterable[AnyRow], fingerprint: str) -> Task:
    """Without the versions that are damaged or missing. Raises `CorruptRecord` where requests get one of these."""
    checked(tasks, row)
    of_row = tuple(version_of(version, fingerprint) for version in version_rows if is_sound(versions, version._mapping))
    if not {row.served_version, *traffic_of(row)} <= {version.version for version in of_row}:
        raise CorruptRecord("versions", key_of(tasks, row._mapping))
    return Task(
        row.tenant,
        row.task_id,
        row.served_version,
        of_row,
        config_of(row),
        moment_of(row.created_at),
        row.public,
        traffic_of(row),
    )


def config_text(config: TaskConfig) -> str:
    return json.dumps(asdict(config))


def config_of(row: AnyRow) -> TaskConfig:
    return TaskConfig(**json.loads(row.config))


def traffic_text(traffic: Mapping[int, float]) -> str | None:
    return json.dumps(dict(sorted(traffic.items()))) if traffic else None


def traffic_of(row: AnyRow) -> dict[int, float]:
    return {int(version): weight for version, weight in json.loads(row.traffic or "{}").items()}
