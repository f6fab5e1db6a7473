"""Looks for damage, takes damaged versions out of service, removes what nothing needs, and backs up.

Knows the registry and the files, and that files are named by their hashes. Knows nothing of prefixes.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

from prefix_store.backup import Copied, back_up
from prefix_store.errors import CorruptPrefix, CorruptRecord, OutOfSpace, StoreUnavailable, UnknownTask, UnknownVersion
from prefix_store.files import StoredFile, is_file_name
from prefix_store.home import Home
from prefix_store.names import file_key
from prefix_store.records import damaged_records
from prefix_store.registry import Registry
from prefix_store.schema import api_keys, tenants
from prefix_store.tasks import TaskVersion


@dataclass(frozen=True, slots=True)
class Damage:
    """What should be there and is not as it was written, or cannot be read.

    `where` is `tenant/task_id/version`, or a record's key.
    """

    where: str
    what: str


class Upkeep:
    """Thread-safe; every method may take long. Errors: `StoreUnavailable`, and what the methods say.

    `writing` is the store's own lock, `quarantine` its method.
    """

    def __init__(
        self,
        home: Home,
        registry: Registry,
        writing: AbstractContextManager[object],
        quarantine: Callable[[str, str, int, str, str], object],
    ) -> None:
        self._database = home.database
        self._registry = registry
        self._blobs = home.blobs
        self._names = home.names
        self._writing = writing
        self._quarantine = quarantine
        self._closing = Event()

    def close(self) -> None:
        """Have `verify` and `backup` raise `StoreUnavailable` at their next file: threads of a server that ends."""
        self._closing.set()

    def scan(self) -> list[Damage]:
        """Compare every record with its checksum, and the files' names and sizes with the records. Reads no file."""
        damage = self._damaged_records()
        with self._writing:  # else a file that is being removed looks like one that is missing
            sizes: dict[str, dict[str, int]] = {}
            for tenant, task_id, version in self._registry.all_versions():
                if tenant not in sizes:
                    sizes[tenant] = self._blobs.sizes(tenant)
                for file in self._names.files_of(version):
                    wrong = _wrong_size(file, sizes[tenant].get(file.name))
                    if wrong is not None and self._is_of_use(tenant, task_id, version):
                        damage.append(Damage(f"{tenant}/{task_id}/{version.version}", wrong))
        return damage

    def verify(self) -> list[Damage]:
        """As `scan`, and read every file: a version whose native one is damaged is quarantined."""
        return [damage for damage in self.verify_each() if damage is not None]

    def verify_each(self) -> Iterator[Damage | None]:
        """`verify` one version at a time, so that the caller may pause between them: None for one that is whole.

        One that cannot be read or quarantined though the store can be reached is told as damage, and the others follow.
        """
        yield from self._damaged_records()
        for tenant, task_id, version in self._registry.all_versions():
            self._check_open()
            yield self._verify(tenant, task_id, version)

    def sweep(self, older_than: timedelta = timedelta(hours=1)) -> int:
        """Remove files that no record needs, and return their bytes. Only on an operator's word, never by itself.

        Raises `CorruptRecord` and removes nothing where a record is damaged: what it needs cannot be known.
        """
        with self._writing:
            if damaged := self._registry.damaged_records():
                raise damaged[0]
            needed = {file_key(tenant, file.name) for tenant, file in self._needed_files()}

            def is_litter(key: str) -> bool:
                return is_file_name(key.rpartition("/")[2]) and key not in needed

            return self._blobs.sweep(is_litter, datetime.now(UTC) - older_than)

    def backup(self, path: Path) -> Copied:
        """Copy the registry and the files it needs, those that are there, to `path`, which must not be there.

        `path` appears when it is whole. On the same file system the files are hard links, which costs no space and
        protects from what happens to the store, not from what happens to the disk. Nothing is written meanwhile.
        """
        with self._writing:
            copied = back_up(self._database, self._blobs, path, self._needed_files())
            of_damaged = [f"files of {record.table} {record.key}" for record in self._registry.damaged_records()]
            return replace(copied, left_out=copied.left_out + of_damaged)

    def _needed_files(self) -> Iterator[tuple[str, StoredFile]]:
        """With their tenants."""
        for tenant, _, version in self._registry.all_versions():
            for file in self._names.files_of(version):
                self._check_open()
                yield tenant, file

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreUnavailable("the store is being closed")

    def _is_of_use(self, tenant: str, task_id: str, version: TaskVersion) -> bool:
        """Whether it is still there: another process may have deleted it, or another upload have its number. Nor is one
        in quarantine of use where its upload is in service as another version: nothing is left to be done about it."""
        try:
            found = self._registry.version(tenant, task_id, version.version)
            if found.created_at != version.created_at:
                return False
            if found.quarantined is None:
                return True
            others = self._registry.task(tenant, task_id).versions
            return not any(other.sha256 == found.sha256 and other.quarantined is None for other in others)
        except (UnknownTask, UnknownVersion):
            return False
        except CorruptRecord:
            return True

    def _damaged_records(self) -> list[Damage]:
        records = self._registry.damaged_records()
        with self._database.reading() as connection:
            records += [record for table in (tenants, api_keys) for record in damaged_records(connection, table)]
        damage = [Damage(f"{record.table} {record.key}", str(record)) for record in records]
        return damage + [Damage("registry", problem) for problem in self._database.problems()]

    def _verify(self, tenant: str, task_id: str, version: TaskVersion) -> Damage | None:
        failures = (StoreUnavailable, OutOfSpace, CorruptRecord)
        with suppress(*failures):
            return self._quarantine_if_damaged(tenant, task_id, version)
        self._blobs.ping()
        self._database.ping()
        try:  # once more: it may have passed
            return self._quarantine_if_damaged(tenant, task_id, version)
        except failures as error:
            return Damage(f"{tenant}/{task_id}/{version.version}", str(error))

    def _quarantine_if_damaged(self, tenant: str, task_id: str, version: TaskVersion) -> Damage | None:
        if not self._damaged_files(tenant, version):
            return None
        with self._writing, suppress(UnknownTask, UnknownVersion):
            # Look again: it may have been deleted or repaired meanwhile.
            now = self._registry.version(tenant, task_id, version.version)
            wrong = self._damaged_files(tenant, now)
            if not wrong or not self._is_of_use(tenant, task_id, now):
                return None
            served = wrong.get(self._names.native_file(now).name)
            if now.quarantined is None and served is not None:
                self._quarantine(tenant, task_id, version.version, served, now.native_sha256)
            return Damage(f"{tenant}/{task_id}/{version.version}", next(iter(wrong.values())))
        return None

    def _damaged_files(self, tenant: str, version: TaskVersion) -> dict[str, str]:
        """What is wrong, by the files' names."""
        wrong = {}
        for file in self._names.files_of(version):
            try:
                body = self._blobs.read(tenant, file.name)
            except CorruptPrefix as error:
                wrong[file.name] = str(error)
                continue
            if hashlib.sha256(body).hexdigest() != file.sha256:
                wrong[file.name] = f"{file.name} is damaged"
        return wrong


def _wrong_size(file: StoredFile, found: int | None) -> str | None:
    if found is None:
        return f"{file.name} is missing"
    if found != file.num_bytes:
        return f"{file.name} has {found} bytes instead of {file.num_bytes}"
    return None
