"""Which tasks there are, their versions, and which version each serves: the store's memory, in a SQL database.

Knows transactions and what is allowed in them. Knows nothing of files or of what is in memory.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select

from prefix_store.database import Database, lock_name
from prefix_store.errors import (
    CorruptRecord,
    PreconditionFailed,
    PublicNameTaken,
    Quarantined,
    StaleVersion,
    UnknownVersion,
)
from prefix_store.quotas import check_quota
from prefix_store.records import AnyRow, damaged_records, is_sound, key_of
from prefix_store.rows import (
    add_task,
    add_version,
    change,
    config_of,
    config_text,
    find_public_task,
    find_task,
    of_task,
    served_version_row,
    sound_part_of,
    task_of,
    task_row,
    traffic_of,
    traffic_text,
    version_of,
    version_row,
    visible_task_row,
)
from prefix_store.schema import moment_text, tasks, versions
from prefix_store.tasks import Published, Shares, Task, TaskConfig, TaskVersion, Upload

VersionRows = dict[tuple[str, str], list[AnyRow]]  # by tenant and task_id


class Registry:
    """Thread-safe. Every writing method is one transaction, durable when it returns.

    `if_match` is the sha256 that the served version's upload must have, or `*` for any. `fingerprint` is that of the
    served backbone; versions of another one are stale. A row that is not what was written raises `CorruptRecord`
    wherever it is needed. Errors of the database itself: see `Database`.
    """

    def __init__(self, database: Database, fingerprint: str) -> None:
        self._database = database
        self._fingerprint = fingerprint

    def publish(
        self,
        tenant: str,
        task_id: str,
        upload: Upload,
        *,
        damage_of: Callable[[TaskVersion], str | None] = lambda version: None,
        serve: bool = True,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Published:
        """Serve `upload`: as it is where it is served already, as its old version where it was, else as a new one.

        It gets all requests from then on; without `serve` the version is kept and who gets them stays as it is, but
        for a new task, which serves its first. A version that was quarantined is released by its own bytes, upload and
        native file: what else these were compiled to is a new version. So it is where `damage_of` says that the old
        version's files are damaged, which is quarantined then. All of it or nothing: also where `damage_of` raises.
        Raises `PreconditionFailed`, where `if_none_match` wants that there is no such task, and `QuotaExceeded`.
        """
        with self._database.writing() as connection:
            lock_name(connection, "task", tenant, task_id)
            task = find_task(connection, tenant, task_id, for_update=True)
            served_sha256 = None if task is None else served_version_row(connection, task).sha256
            if if_none_match and task is not None:
                raise PreconditionFailed("no task", served_sha256)
            _check_match(if_match, served_sha256)
            same = self._find_same(connection, tenant, task_id, upload)
            while same is not None and (damage := damage_of(version_of(same, self._fingerprint))):
                change(connection, versions, same, quarantined=damage)
                same = self._find_same(connection, tenant, task_id, upload)
            if task is None or same is None:
                return self._publish_new(connection, tenant, task_id, upload, task, serve)
            is_alone = same.version == task.served_version and task.traffic is None
            changed = (serve and not is_alone) or same.quarantined is not None
            if serve:
                change(connection, tasks, task, served_version=same.version, traffic=None)
            change(connection, versions, same, quarantined=None)
            version = version_of(version_row(connection, tenant, task_id, same.version), self._fingerprint)
            return Published(version, config_of(task), created_task=False, changed=changed)

    def task(self, tenant: str, task_id: str) -> Task:
        """The tenant's own task, else the public one of that name. Raises `UnknownTask`."""
        with self._database.reading() as connection:
            task = visible_task_row(connection, tenant, task_id)
            return task_of(task, _versions_of(connection, task), self._fingerprint)

    def tasks(self, tenant: str, limit: int, after: str | None) -> list[Task]:
        """Up to `limit` tasks that the tenant may use, in the order of their ids, those behind `after` only.

        Its own, and those public ones that no task of its own hides. A damaged record is left out.
        """
        found: list[Task] = []
        while len(found) < limit:
            num_wanted = limit - len(found)
            rows, by_task = self._page(tenant, num_wanted, after)
            for row in rows:
                with suppress(CorruptRecord):
                    found.append(task_of(row, by_task[row.tenant, row.task_id], self._fingerprint))
            if len(rows) < num_wanted:
                break
            after = rows[-1].task_id
        return found

    def count(self, tenant: str) -> int:
        """How many tasks the tenant may use, damaged records included."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.count()).select_from(tasks).where(_is_visible(tenant))) or 0

    def served(self, tenant: str, task_id: str) -> tuple[str, TaskVersion, TaskConfig, Shares]:
        """What a request for the task gets, and whose it is: the tenant's own or public. Raises `UnknownTask`."""
        with self._database.reading() as connection:
            task = visible_task_row(connection, tenant, task_id)
            version = version_of(served_version_row(connection, task), self._fingerprint)
            shares = tuple(
                (version_of(version_row(connection, task.tenant, task_id, number), self._fingerprint), weight)
                for number, weight in traffic_of(task).items()
            )
            return task.tenant, version, config_of(task), shares

    def version(self, tenant: str, task_id: str, version: int | None = None) -> TaskVersion:
        """One version of the tenant's own task, by default the served one. Raises `UnknownTask`, `UnknownVersion`."""
        with self._database.reading() as connection:
            task = task_row(connection, tenant, task_id)
            if version is None:
                return version_of(served_version_row(connection, task), self._fingerprint)
            return version_of(version_row(connection, tenant, task_id, version), self._fingerprint)

    def patch(
        self,
        tenant: str,
        task_id: str,
        *,
        version: int | None = None,
        traffic: Mapping[int, float] | None = None,
        change_config: Callable[[TaskConfig], TaskConfig] | None = None,
        public: bool | None = None,
        if_match: str | None = None,
    ) -> Task:
        """Change what is given, all of it or, where anything is refused, nothing.

        `version` ends the task's traffic, unless `traffic` is given too; an empty one ends it.
        Raises `UnknownTask`, `UnknownVersion`, `StaleVersion`, `Quarantined`, `PublicNameTaken`, `PreconditionFailed`.
        """
        with self._database.writing() as connection:
            task = task_row(connection, tenant, task_id, for_update=True)
            if if_match is not None:
                _check_match(if_match, served_version_row(connection, task).sha256)
            values: dict[str, object] = {}
            if version is not None:
                self._check_servable(connection, tenant, task_id, version)
                values["served_version"] = version
            for number in traffic or ():
                self._check_servable(connection, tenant, task_id, number)
            if version is not None or traffic is not None:
                values["traffic"] = traffic_text(traffic or {})
            if change_config is not None:
                values["config"] = config_text(change_config(config_of(task)))
            if public is not None:
                lock_name(connection, "public task", task_id)
                other = find_public_task(connection, task_id) if public else None
                if other is not None and other.tenant != tenant:
                    raise PublicNameTaken(task_id, other.tenant)
                values["public"] = public
            if values:
                change(connection, tasks, task, **values)
            return self._sound_part(connection, task_row(connection, tenant, task_id))

    def _check_servable(self, connection: Connection, tenant: str, task_id: str, version: int) -> None:
        wanted = version_of(version_row(connection, tenant, task_id, version), self._fingerprint)
        if wanted.stale:
            raise StaleVersion(task_id, version, wanted.backbone, self._fingerprint)
        if wanted.quarantined is not None:
            raise Quarantined(task_id, version, wanted.quarantined)

    def quarantine(self, tenant: str, task_id: str, version: int, reason: str, native_sha256: str | None) -> Task:
        """Take a version out of service. Raises `UnknownTask`; `UnknownVersion` also where the file is another one."""
        with self._database.writing() as connection:
            task = task_row(connection, tenant, task_id, for_update=True)
            found = version_row(connection, tenant, task_id, version)
            if native_sha256 not in (None, found.native_sha256):
                raise UnknownVersion(task_id, version)
            change(connection, versions, found, quarantined=reason)
            return self._sound_part(connection, task)

    def delete(self, tenant: str, task_id: str, if_match: str | None) -> list[TaskVersion]:
        """Remove the task and its versions, and return those. Raises `UnknownTask`, `PreconditionFailed`.

        Without `if_match` damaged records can be deleted too; they are not returned.
        """
        with self._database.writing() as connection:
            try:
                task = task_row(connection, tenant, task_id, for_update=True)
                _check_match(if_match, served_version_row(connection, task).sha256)
            except CorruptRecord:
                if if_match is not None:
                    raise
            rows = connection.execute(of_task(tenant, task_id)).all()
            for table in (versions, tasks):
                connection.execute(delete(table).where(table.c.tenant == tenant, table.c.task_id == task_id))
        return [version_of(row, self._fingerprint) for row in rows if is_sound(versions, row._mapping)]

    def needs(self, tenant: str, sha256: str, uploaded_at: datetime | None = None) -> bool:
        """Whether any version of the tenant's, or the one uploaded at that moment, has a file of this hash."""
        of_hash = or_(versions.c.sha256 == sha256, versions.c.native_sha256 == sha256)
        needing = select(versions.c.version).where(versions.c.tenant == tenant, of_hash).limit(1)
        if uploaded_at is not None:
            needing = needing.where(versions.c.created_at == moment_text(uploaded_at))
        with self._database.reading() as connection:
            return connection.execute(needing).first() is not None

    def all_versions(self) -> list[tuple[str, str, TaskVersion]]:
        """Every sound version of every tenant, with its tenant and task."""
        everything = select(versions).order_by(versions.c.tenant, versions.c.task_id, versions.c.version)
        with self._database.reading() as connection:
            rows = connection.execute(everything).all()
        sound = [row for row in rows if is_sound(versions, row._mapping)]
        return [(row.tenant, row.task_id, version_of(row, self._fingerprint)) for row in sound]

    def damaged_records(self) -> list[CorruptRecord]:
        """Rows of tasks and versions that are not what was written, and tasks that lack a version."""
        with self._database.reading() as connection:
            damaged = [record for table in (tasks, versions) for record in damaged_records(connection, table)]
            same = (versions.c.tenant == tasks.c.tenant) & (versions.c.task_id == tasks.c.task_id)
            num_found = select(func.count()).select_from(versions).where(same).scalar_subquery()
            incomplete = connection.execute(select(tasks).where(tasks.c.num_versions != num_found)).all()
        return damaged + [CorruptRecord("versions", key_of(tasks, row._mapping)) for row in incomplete]

    def _page(self, tenant: str, limit: int, after: str | None) -> tuple[Sequence[AnyRow], VersionRows]:
        page = select(tasks).where(_is_visible(tenant)).order_by(tasks.c.task_id).limit(limit)
        if after is not None:
            page = page.where(tasks.c.task_id > after)
        by_task: VersionRows = defaultdict(list)
        with self._database.reading() as connection:
            rows = connection.execute(page).all()
            of_page = select(versions).where(
                versions.c.tenant.in_({row.tenant for row in rows}),
                versions.c.task_id.in_({row.task_id for row in rows}),
            )
            for version in connection.execute(of_page.order_by(versions.c.version)):
                by_task[version.tenant, version.task_id].append(version)
        return rows, by_task

    def _publish_new(
        self, connection: Connection, tenant: str, task_id: str, upload: Upload, task: AnyRow | None, serve: bool
    ) -> Published:
        num_native_bytes = 0 if upload.sha256 == upload.native_sha256 else upload.num_native_bytes
        num_new_tasks = 1 if task is None else 0
        check_quota(connection, tenant, num_new_tasks=num_new_tasks, num_new_bytes=upload.num_bytes + num_native_bytes)
        number = 1 if task is None else 1 + task.num_versions
        config = TaskConfig() if task is None else config_of(task)
        if task is None:
            add_task(connection, tenant, task_id, config)
        else:
            served: dict[str, object] = {"served_version": number, "traffic": None} if serve else {}
            change(connection, tasks, task, num_versions=number, **served)
        add_version(connection, tenant, task_id, number, upload)
        version = TaskVersion(**asdict(upload), version=number, stale=upload.backbone != self._fingerprint)
        return Published(version, config, created_task=task is None, changed=True)

    def _find_same(self, connection: Connection, tenant: str, task_id: str, upload: Upload) -> AnyRow | None:
        """The version with the same bytes that is of use to who uploads them: sound, and made for the same backbone.

        One in quarantine has failed, or its native file is damaged: it must also be what they are compiled to now.
        """
        in_service = versions.c.quarantined.is_(None)
        of_use = and_(
            versions.c.sha256 == upload.sha256,
            versions.c.backbone == upload.backbone,
            or_(in_service, versions.c.native_sha256 == upload.native_sha256),
        )
        rows = connection.execute(of_task(tenant, task_id).where(of_use).order_by(~in_service, versions.c.version))
        return next((row for row in rows if is_sound(versions, row._mapping)), None)

    def _sound_part(self, connection: Connection, task: AnyRow) -> Task:
        """A damaged version keeps no other from being served, or taken out of service."""
        return sound_part_of(task, _versions_of(connection, task), self._fingerprint)


def _versions_of(connection: Connection, task: AnyRow) -> Sequence[AnyRow]:
    return connection.execute(of_task(task.tenant, task.task_id).order_by(versions.c.version)).all()


def _is_visible(tenant: str) -> ColumnElement[bool]:
    """The tenant's own tasks, and the public ones that none of its own hides."""
    own = tasks.alias()
    hidden = exists().where(own.c.tenant == tenant, own.c.task_id == tasks.c.task_id)
    return or_(tasks.c.tenant == tenant, and_(tasks.c.public, ~hidden))


def _check_match(if_match: str | None, served_sha256: str | None) -> None:
    if if_match is None or (if_match == "*" and served_sha256 is not None) or if_match == served_sha256:
        return
    raise PreconditionFailed(if_match, served_sha256)
