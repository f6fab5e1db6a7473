"""The store as the server sees it: publish, look up, list, roll back and delete tasks' prefixes.

Knows the order that makes a write safe: first the files, then one transaction. Knows nothing of HTTP or the engine.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from threading import RLock

from prefix_store.cache import CacheStats, PrefixCache
from prefix_store.errors import (
    CommitUncertain,
    CorruptPrefix,
    InvalidPrefix,
    NameTaken,
    Quarantined,
    StaleVersion,
    StoreError,
)
from prefix_store.files import StoredFile
from prefix_store.formats import parse
from prefix_store.home import Place, open_home
from prefix_store.names import check_new_task_id, check_task_id
from prefix_store.pointers import Pointer, ServedPointers
from prefix_store.prefix import BackboneSpec, Prefix
from prefix_store.principals import MAX_SECONDS, Principals
from prefix_store.reading_room import ReadingRoom
from prefix_store.registry import Registry
from prefix_store.shared_memory import SharedMemory
from prefix_store.tasks import Published, Served, Task, TaskConfig, TaskVersion, Upload
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.upkeep import Upkeep
from prefix_store.usage import UsageLedger

MAX_FAILED_REMOVALS = 3  # of files that no version needs, after one write
# Of all files that are read for their first use; while that goes on, each is in memory as bytes and as a tensor.
MAX_BYTES_READ_AT_ONCE = 32 << 20
MAX_OUTAGE = 3600.0  # seconds for which a key stays good whose tenant cannot be asked for, in a store that many share


class PrefixStore:
    """Every tenant's tasks, in a directory that one process owns, or in a bucket that many share. Thread-safe.

    All methods may wait for the disk, so an event loop calls them in threads, except `cached`, which never does.
    Besides what each says they raise `OutOfSpace`, `StoreUnavailable`, `CorruptRecord`, and `UnknownTask` for a task
    that is not there. `place` is a directory's path, with the registry in `registry.sqlite3`; or a bucket's URL, with
    `registry_url` that of a PostgreSQL database. Prefixes are kept in `memory`, if given, up to `cache_bytes` of them.
    Opening raises `StoreInUse`, `UnsuitablePlace`, `SchemaTooNew`.

    In a bucket, what another process changed holds here within `MAX_SECONDS`, and a task that is not known here is
    looked up at once. While the registry cannot be reached, what it said last holds.

    In the same database: `tenants` and their keys, and the `usage` ledger. `upkeep` looks for damage and backs up.
    """

    def __init__(
        self,
        place: Place,
        *,
        backbone: BackboneSpec,
        cache_bytes: int = 1 << 30,
        registry_url: str | None = None,
        memory: SharedMemory | None = None,
    ) -> None:
        self._backbone = backbone
        self._memory = memory
        self._home = open_home(place, registry_url)
        self._blobs, self._names, self._database = self._home.blobs, self._home.names, self._home.database
        self._registry = Registry(self._database, backbone.fingerprint)
        self._cache = PrefixCache(cache_bytes)
        self._reading_room = ReadingRoom(MAX_BYTES_READ_AT_ONCE)
        self._pointers = ServedPointers(MAX_SECONDS if self._home.is_shared else math.inf)
        # One write at a time, so that no file is removed as unneeded while another write begins to need it.
        self._writing = RLock()
        self._loose: set[tuple[str, StoredFile]] = set()  # with their tenants: files that perhaps no version needs
        self._just_written: set[tuple[str, StoredFile]] = set()  # by the write that is under way
        self.num_quarantines = 0  # since the store was opened
        principals = Principals(max_outage=MAX_OUTAGE if self._home.is_shared else 0.0)
        self.tenants = TenantRegistry(self._database, principals=principals)
        self.usage = UsageLedger(self._database)
        self.upkeep = Upkeep(self._home, self._registry, self._writing, self.quarantine)

    def cached(self, tenant: str, task_id: str, draw: float = 0.0) -> Served | None:
        """What `get` returns, if that is in memory; never waits for the disk. None says: ask `get`."""
        pointer = self._pointers.get((tenant, task_id))
        if pointer is None:
            return None
        version = pointer.drawn(draw)
        if not version.is_in_service:
            return None
        prefix = self._cache.get(_cache_key(pointer.tenant, version))
        return None if prefix is None else _served(task_id, pointer, version, prefix)

    def get(self, tenant: str, task_id: str, draw: float = 0.0) -> Served:
        """What a request gets: the tenant's own task, else the public one of that name.

        `draw`, from [0, 1), decides among versions that share the task's requests. Loads it where it is not in memory,
        once for any number of callers.
        Raises `UnknownTask`, `StaleVersion`, `Quarantined`, `CorruptPrefix`.
        """
        while True:
            pointer = self._pointers.get_or_read((tenant, task_id), partial(self._read_pointer, tenant, task_id))
            version = pointer.drawn(draw)
            if version.stale:
                raise StaleVersion(task_id, version.version, version.backbone, self._backbone.fingerprint)
            if version.quarantined is not None:
                raise Quarantined(task_id, version.version, version.quarantined)
            owner = pointer.tenant
            try:
                prefix = self._cache.get_or_load(_cache_key(owner, version), partial(self._load, owner, version))
            except CorruptPrefix:
                if self._is_served(tenant, task_id, pointer):
                    raise
                continue  # it was deleted or replaced while it was being read: look again
            return _served(task_id, pointer, version, prefix)

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
        serve: bool = True,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Published:
        """Serve `upload`, whose native file is `native` (the same bytes where it was native), as the task's version.

        The served version's own bytes change nothing, an older version's serve that one again, others become the next
        version; all durably before this returns. It gets all requests from then on; without `serve` it is kept only,
        as a version of a task that is there, and `patch` may serve it. A version in quarantine leaves it by its own
        bytes, upload and native file; where the latter is another by now, they are a new version. So they are where the
        native file of the version found is damaged, which is then quarantined. `if_match` is the sha256 that the served
        version must have, or `*` for any; `if_none_match` wants that there is no such task.
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
        bodies = {facts.sha256: upload, facts.native_sha256: native}
        with self._writing_task(tenant, task_id):
            written = self._names.files_of(facts)
            for file in written:
                self._write(tenant, file, bodies[file.sha256])
            damages: list[str | None] = []

            def damage_of(found: TaskVersion) -> str | None:
                damages.append(self._damage_beyond(bodies, tenant, found))
                # Where the same bytes turn out to be there already, they repair a damaged file.
                for file in self._names.files_of(found):
                    if file not in written and file.sha256 in bodies:
                        self._blobs.repair(tenant, file.name, bodies[file.sha256])
                return damages[-1]

            published = self._registry.publish(
                tenant,
                task_id,
                facts,
                damage_of=damage_of,
                serve=serve,
                if_match=if_match,
                if_none_match=if_none_match,
            )
            self.num_quarantines += sum(damage is not None for damage in damages)
            if serve:
                self._pointers.put((tenant, task_id), Pointer(tenant, published.version, published.config))
            else:
                self._pointers.drop((tenant, task_id))  # it may have been released from quarantine
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
        while True:
            try:
                return self._read(tenant, self._names.upload_file(found)), found
            except CorruptPrefix:
                again = self._registry.version(tenant, task_id, version)  # raises where it was deleted meanwhile
                if again == found:
                    raise
                found = again

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
        """Change what is given, all of it or nothing: the served version; the versions among which requests are drawn,
        each with its weight, until `version`, an upload or an empty `traffic` ends that; the config (a function of the
        present one); whether tenants that have no task of this name may use it. `if_match` as in `publish`.

        Raises `UnknownVersion`, `StaleVersion`, `Quarantined`, `PublicNameTaken`, `PreconditionFailed`.
        """
        with self._writing_task(tenant, task_id):
            task = self._registry.patch(
                tenant,
                task_id,
                version=version,
                traffic=traffic,
                change_config=change_config,
                public=public,
                if_match=if_match,
            )
            return self._remember(tenant, task)

    def quarantine(
        self, tenant: str, task_id: str, version: int, reason: str, native_sha256: str | None = None
    ) -> Task:
        """Serve the version no more, until it is uploaded again.

        Raises `UnknownVersion`, also where `native_sha256` is given and the version of that number is another by now.
        """
        with self._writing_task(tenant, task_id):
            task = self._remember(tenant, self._registry.quarantine(tenant, task_id, version, reason, native_sha256))
            self.num_quarantines += 1
            return task

    def delete(self, tenant: str, task_id: str, if_match: str | None = None) -> None:
        """Forget the task and remove the files that no other task of the tenant's needs. Raises `PreconditionFailed`.

        A request that holds the prefix is not concerned. The same name uploaded anew starts at version 1.
        """
        with self._writing_task(tenant, task_id):
            versions = self._registry.delete(tenant, task_id, if_match)
            self._pointers.drop((tenant, task_id))
            for version in versions:
                self._loose |= {(tenant, file) for file in self._names.files_of(version)}
                self._cache.discard(_cache_key(tenant, version))

    def ping(self) -> None:
        """Raises `StoreUnavailable` where the files' place or the registry cannot be reached."""
        self._blobs.ping()
        self._database.ping()

    def close(self) -> None:
        self.upkeep.close()
        self._home.close()

    @property
    def stats(self) -> CacheStats:
        return self._cache.stats

    @contextmanager
    def _writing_task(self, tenant: str, task_id: str) -> Iterator[None]:
        with self._writing:
            self._just_written.clear()
            try:
                yield
            except CommitUncertain:
                # What is served is what the registry says, once it can say. A version that needs the new files may be
                # there, even where it is not seen before the next start: they are left to `sweep`.
                self._pointers.drop((tenant, task_id))
                self._loose -= self._just_written
                raise
            except StoreError:
                self._remove_loose_files()
                raise
            self._remove_loose_files()

    def _read_pointer(self, tenant: str, task_id: str) -> Pointer:
        return Pointer(*self._registry.served(tenant, task_id))

    def _is_served(self, tenant: str, task_id: str, pointer: Pointer) -> bool:
        """Whether that is still what the registry says; if not, what was remembered is forgotten."""
        known = self._pointers.get((tenant, task_id))
        if known is not None and known is not pointer:
            return False  # it was replaced or repaired here
        if self._read_pointer(tenant, task_id) == pointer:
            return True
        self._pointers.drop((tenant, task_id))
        return False

    def _write(self, tenant: str, file: StoredFile, body: bytes) -> None:
        self._loose.add((tenant, file))
        self._just_written.add((tenant, file))
        try:
            self._blobs.write(tenant, file.name, body)
        except NameTaken:
            self._loose.discard((tenant, file))  # it is somebody else's
            raise

    def _damage_beyond(self, bodies: Mapping[str, bytes], tenant: str, version: TaskVersion) -> str | None:
        """What is wrong with the version's native file, where it is none of `bodies`, which would repair it."""
        if version.native_sha256 not in bodies:
            try:
                self._read(tenant, self._names.native_file(version))
            except CorruptPrefix as error:
                return str(error)
        return None

    def _remember(self, tenant: str, task: Task) -> Task:
        self._pointers.put((tenant, task.task_id), Pointer(tenant, task.served, task.config, task.shares))
        return task

    def _load(self, tenant: str, version: TaskVersion) -> Prefix:
        file = self._names.native_file(version)
        with self._reading_room.taken(file.num_bytes):
            try:
                prefix = parse(self._read(tenant, file), self._backbone.shape, self._backbone.fingerprint)
            except InvalidPrefix as error:
                raise CorruptPrefix(file.name, f"is no prefix of this backbone ({error})") from error
            if not isinstance(prefix, Prefix):
                raise CorruptPrefix(file.name, "is not in the native format")
            prefix = replace(prefix, kind=version.kind)
            if self._memory is not None:
                with suppress(OSError):  # the system has no more mappings for us: this one goes over in bytes
                    prefix = prefix.shared(self._memory)
        return prefix

    def _read(self, tenant: str, file: StoredFile) -> bytes:
        body = self._blobs.read(tenant, file.name)
        if hashlib.sha256(body).hexdigest() != file.sha256:
            raise CorruptPrefix(file.name, f"is damaged: its {len(body)} bytes are not those that were stored")
        return body

    def _remove_loose_files(self) -> None:
        """Remove those that no version needs; what cannot be removed now is tried again after the next write."""
        num_failed = 0
        # In any order: one that cannot be removed is not always first. Where none can, that is soon found.
        for tenant, file in random.sample(tuple(self._loose), len(self._loose)):
            try:
                if not self._registry.needs(tenant, file.sha256, file.uploaded_at):
                    self._blobs.delete(tenant, file.name)
                self._loose.discard((tenant, file))
            except StoreError:  # litter is no reason to fail what was done
                num_failed += 1
                if num_failed == MAX_FAILED_REMOVALS:
                    return


def _cache_key(tenant: str, version: TaskVersion) -> tuple[str, str, str]:
    # The bytes, never the task: a task that was deleted and uploaded anew counts its versions from 1 again. The tenant,
    # so that how long a first use takes says nothing of other tenants' files.
    return tenant, version.native_sha256, version.kind


def _served(task_id: str, pointer: Pointer, version: TaskVersion, prefix: Prefix) -> Served:
    return Served(pointer.tenant, task_id, version.version, prefix, pointer.config)
