"""The store as the server sees it: publish, look up, list, roll back and delete tasks' prefixes.

Knows the order that makes a write safe: first the files, then one transaction. Knows nothing of HTTP or the engine.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import RLock

from prefix_store.blobs import DirectoryBlobs
from prefix_store.cache import CacheStats, PrefixCache
from prefix_store.database import Database, sqlite_url
from prefix_store.errors import CommitUncertain, CorruptPrefix, InvalidPrefix, Quarantined, StaleVersion, StoreError
from prefix_store.files import StoredFile, names_of, native_file, upload_file
from prefix_store.formats import parse
from prefix_store.lock import DirectoryLock
from prefix_store.names import check_new_task_id, check_task_id
from prefix_store.pointers import Pointer, ServedPointers
from prefix_store.prefix import BackboneSpec, Prefix
from prefix_store.registry import Registry
from prefix_store.tasks import Published, Served, Task, TaskConfig, TaskVersion, Upload
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.upkeep import Upkeep
from prefix_store.usage import UsageLedger


class PrefixStore:
    """Every tenant's tasks, in one directory that one process owns. Thread-safe.

    All methods may wait for the disk, so an event loop calls them in threads, except `cached`, which never does.
    Besides what each says they raise `OutOfSpace`, `StoreUnavailable`, `CorruptRecord`, and `UnknownTask` for a task
    that is not there. `registry_url` is an SQLAlchemy URL; without one the registry is `registry.sqlite3` in the
    directory. Opening raises `StoreInUse` and `SchemaTooNew`.

    In the same database: `tenants` and their keys, and the `usage` ledger. `upkeep` looks for damage and backs up.
    """

    def __init__(
        self,
        directory: Path,
        *,
        backbone: BackboneSpec,
        cache_bytes: int = 1 << 30,
        registry_url: str | None = None,
    ) -> None:
        self._backbone = backbone
        self._lock = DirectoryLock(directory)
        try:
            self._blobs = DirectoryBlobs(directory)
            self._database = Database(registry_url or sqlite_url(directory / "registry.sqlite3"))
        except BaseException:
            self._lock.give_back()
            raise
        self._registry = Registry(self._database, backbone.fingerprint)
        self._cache = PrefixCache(cache_bytes)
        self._pointers = ServedPointers()
        # One write at a time, so that no file is removed as unneeded while another write begins to need it.
        self._writing = RLock()
        self._loose: set[tuple[str, str]] = set()  # (tenant, sha256) of files that perhaps no version needs
        self.tenants = TenantRegistry(self._database)
        self.usage = UsageLedger(self._database)
        self.upkeep = Upkeep(self._database, self._registry, self._blobs, self._writing, self.quarantine)

    def cached(self, tenant: str, task_id: str) -> Served | None:
        """What a request gets, if that is in memory; never waits for the disk. None says: ask `get`."""
        pointer = self._pointers.get((tenant, task_id))
        if pointer is None or pointer.version.stale or pointer.version.quarantined is not None:
            return None
        prefix = self._cache.get(_cache_key(pointer.tenant, pointer.version))
        return None if prefix is None else _served(task_id, pointer, prefix)

    def get(self, tenant: str, task_id: str) -> Served:
        """What a request gets: the tenant's own task, else the public one of that name.

        Loads it where it is not in memory, once for any number of callers.
        Raises `UnknownTask`, `StaleVersion`, `Quarantined`, `CorruptPrefix`.
        """
        while True:
            pointer = self._pointers.get_or_read((tenant, task_id), partial(self._read_pointer, tenant, task_id))
            version = pointer.version
            if version.stale:
                raise StaleVersion(task_id, version.version, version.backbone, self._backbone.fingerprint)
            if version.quarantined is not None:
                raise Quarantined(task_id, version.version, version.quarantined)
            owner = pointer.tenant
            try:
                prefix = self._cache.get_or_load(_cache_key(owner, version), partial(self._load, owner, version))
            except CorruptPrefix:
                if self._pointers.get((tenant, task_id)) is pointer:
                    raise
                continue  # it was deleted or replaced while it was being read: look again
            return _served(task_id, pointer, prefix)

    def publish(
        self,
        tenant: str,
        task_id: str,
        *,
        upload: bytes,
        native: bytes,
        kind: str,
        num_virtual_tokens: int,
        backbone_checked: bool,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Published:
        """Serve `upload`, whose native file is `native` (the same bytes where it was native), as the task's version.

        The served version's own bytes change nothing, an older version's serve that one again, others become the next
        version; all durably before this returns. A version in quarantine leaves it by its own bytes. `if_match` is the
        sha256 that the served version must have, or `*` for any; `if_none_match` wants that there is no such task.
        Raises `InvalidTaskId`, `PreconditionFailed`, `QuotaExceeded`.
        """
        check_new_task_id(task_id, self._backbone.name)
        facts = Upload(
            sha256=hashlib.sha256(upload).hexdigest(),
            native_sha256=hashlib.sha256(native).hexdigest(),
            kind=kind,
            num_virtual_tokens=num_virtual_tokens,
            num_bytes=len(upload),
            num_native_bytes=len(native),
            backbone=self._backbone.fingerprint,
            backbone_checked=backbone_checked,
            created_at=datetime.now(UTC),
        )
        with self._writing_task(tenant, task_id):
            self._loose |= _hashes(tenant, facts)
            # Also where the same bytes turn out to be there already: it repairs a damaged file.
            for name, body in {upload_file(facts).name: upload, native_file(facts).name: native}.items():
                self._blobs.write(tenant, name, body)
            published = self._registry.publish(tenant, task_id, facts, if_match=if_match, if_none_match=if_none_match)
            self._pointers.put((tenant, task_id), Pointer(tenant, published.version, published.config))
        return published

    def task(self, tenant: str, task_id: str) -> Task:
        """The tenant's own task, else the public one of that name."""
        return self._registry.task(tenant, task_id)

    def tasks(self, tenant: str, limit: int = 100, after: str | None = None) -> list[Task]:
        """Up to `limit` tasks in the order of their ids; `after` is the last id of the page before.

        The tenant's own, and the public ones that none of its own hides. A damaged record is left out.
        Raises `InvalidTaskId` for an `after` that no task can have.
        """
        if after is not None:
            check_task_id(after)
        return self._registry.tasks(tenant, limit, after)

    def count(self, tenant: str) -> int:
        """How many tasks `tasks` has for the tenant in all; here damaged records count."""
        return self._registry.count(tenant)

    def upload_bytes(self, tenant: str, task_id: str, version: int | None = None) -> tuple[bytes, TaskVersion]:
        """What was uploaded to the tenant's own task, byte for byte: as the served version or as `version`.

        Raises `UnknownVersion`, `CorruptPrefix`.
        """
        found = self._registry.version(tenant, task_id, version)
        try:
            return self._read(tenant, upload_file(found)), found
        except CorruptPrefix:
            self._registry.version(tenant, task_id, version)  # raises where it was deleted while it was being read
            raise

    def patch(
        self,
        tenant: str,
        task_id: str,
        *,
        version: int | None = None,
        change_config: Callable[[TaskConfig], TaskConfig] | None = None,
        public: bool | None = None,
        if_match: str | None = None,
    ) -> Task:
        """Change what is given, all of it or nothing: the served version, the config (a function of the present one),
        whether tenants that have no task of this name may use it. `if_match` as in `publish`.

        Raises `UnknownVersion`, `StaleVersion`, `Quarantined`, `PublicNameTaken`, `PreconditionFailed`.
        """
        with self._writing_task(tenant, task_id):
            task = self._registry.patch(
                tenant, task_id, version=version, change_config=change_config, public=public, if_match=if_match
            )
            return self._remember(tenant, task)

    def quarantine(self, tenant: str, task_id: str, version: int, reason: str) -> Task:
        """Serve the version no more, until it is uploaded again or released. Raises `UnknownVersion`."""
        return self._set_quarantined(tenant, task_id, version, reason)

    def release(self, tenant: str, task_id: str, version: int) -> Task:
        """Let a version out of quarantine. Raises `UnknownVersion`."""
        return self._set_quarantined(tenant, task_id, version, None)

    def delete(self, tenant: str, task_id: str, if_match: str | None = None) -> None:
        """Forget the task and remove the files that no other task of the tenant's needs. Raises `PreconditionFailed`.

        A request that holds the prefix is not concerned. The same name uploaded anew starts at version 1.
        """
        with self._writing_task(tenant, task_id):
            versions = self._registry.delete(tenant, task_id, if_match)
            self._pointers.drop((tenant, task_id))
            for version in versions:
                self._loose |= _hashes(tenant, version)
                self._cache.discard(_cache_key(tenant, version))

    def ping(self) -> None:
        """Raises `StoreUnavailable` where the directory or the registry cannot be reached."""
        self._blobs.ping()
        self._database.ping()

    def close(self) -> None:
        self._database.close()
        self._lock.give_back()

    @property
    def stats(self) -> CacheStats:
        return self._cache.stats

    @contextmanager
    def _writing_task(self, tenant: str, task_id: str) -> Iterator[None]:
        with self._writing:
            try:
                yield
            except CommitUncertain:
                # What is served is what the registry says, once it can say. A version that needs the loose files may
                # be there: the next write looks.
                self._pointers.drop((tenant, task_id))
                raise
            except StoreError:
                self._remove_loose_files()
                raise
            self._remove_loose_files()

    def _read_pointer(self, tenant: str, task_id: str) -> Pointer:
        return Pointer(*self._registry.served(tenant, task_id))

    def _set_quarantined(self, tenant: str, task_id: str, version: int, reason: str | None) -> Task:
        with self._writing_task(tenant, task_id):
            return self._remember(tenant, self._registry.set_quarantined(tenant, task_id, version, reason))

    def _remember(self, tenant: str, task: Task) -> Task:
        self._pointers.put((tenant, task.task_id), Pointer(tenant, task.served, task.config))
        return task

    def _load(self, tenant: str, version: TaskVersion) -> Prefix:
        file = native_file(version)
        body = self._read(tenant, file)
        try:
            prefix = parse(body, self._backbone.shape, self._backbone.fingerprint)
        except InvalidPrefix as error:
            raise CorruptPrefix(file.name, f"is no prefix of this backbone ({error})") from error
        if not isinstance(prefix, Prefix):
            raise CorruptPrefix(file.name, "is not in the native format")
        return replace(prefix, kind=version.kind)

    def _read(self, tenant: str, file: StoredFile) -> bytes:
        body = self._blobs.read(tenant, file.name)
        if hashlib.sha256(body).hexdigest() != file.sha256:
            raise CorruptPrefix(file.name, f"is damaged: its {len(body)} bytes are not those that were stored")
        return body

    def _remove_loose_files(self) -> None:
        """Remove the files that no version needs; what cannot be removed now is tried again after the next write."""
        with suppress(StoreError):  # litter is no reason to fail what was done
            for tenant, sha256 in tuple(self._loose):
                if not self._registry.needs(tenant, sha256):
                    for name in names_of(sha256):
                        self._blobs.delete(tenant, name)
                self._loose.discard((tenant, sha256))


def _hashes(tenant: str, facts: Upload) -> set[tuple[str, str]]:
    return {(tenant, facts.sha256), (tenant, facts.native_sha256)}


def _cache_key(tenant: str, version: TaskVersion) -> tuple[str, str, str]:
    # The bytes, never the task: a task that was deleted and uploaded anew counts its versions from 1 again. The tenant,
    # so that how long a first use takes says nothing of other tenants' files.
    return tenant, version.native_sha256, version.kind


def _served(task_id: str, pointer: Pointer, prefix: Prefix) -> Served:
    return Served(pointer.tenant, task_id, pointer.version.version, prefix, pointer.config)
