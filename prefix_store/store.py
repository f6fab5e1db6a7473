"""The store as the server sees it: publish, look up, list, roll back and delete tasks' prefixes.

Knows the order that makes a write safe: first the files, then one transaction. Knows nothing of HTTP or the engine.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Lock

from prefix_store.blobs import DirectoryBlobs
from prefix_store.cache import CacheStats, PrefixCache
from prefix_store.errors import CommitUncertain, CorruptPrefix, InvalidPrefix, StaleVersion, StoreError
from prefix_store.formats import parse
from prefix_store.names import check_new_task_id, check_task_id
from prefix_store.pointers import Pointer, ServedPointers
from prefix_store.prefix import BackboneSpec, Prefix
from prefix_store.registry import Registry
from prefix_store.schema import sqlite_url
from prefix_store.tasks import Published, Served, Task, TaskConfig, TaskVersion, Upload

_NATIVE = "{}.safetensors"
_FOREIGN = "{}.upload"  # what was uploaded, where that is not the native file


class PrefixStore:
    """Every tenant's tasks, in one directory that one process owns. Thread-safe.

    All methods may wait for the disk, so an event loop calls them in threads, except `cached`, which never does.
    Besides what each says they raise `OutOfSpace`, `StoreUnavailable`, and `UnknownTask` for a task that is not there.
    `registry_url` is an SQLAlchemy URL; without one the registry is `registry.sqlite3` in the directory.
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
        self._blobs = DirectoryBlobs(directory)
        self._registry = Registry(registry_url or sqlite_url(directory / "registry.sqlite3"), backbone.fingerprint)
        self._cache = PrefixCache(cache_bytes)
        self._pointers = ServedPointers()
        # One write at a time, so that no file is removed as unneeded while another write begins to need it.
        self._writing = Lock()
        self._loose: set[tuple[str, str]] = set()  # (tenant, sha256) of files that perhaps no version needs

    def cached(self, tenant: str, task_id: str) -> Served | None:
        """What a request gets, if that is in memory; never waits for the disk. None says: ask `get`."""
        pointer = self._pointers.get((tenant, task_id))
        if pointer is None or pointer.version.stale:
            return None
        prefix = self._cache.get(_cache_key(tenant, pointer.version))
        return None if prefix is None else _served(task_id, pointer, prefix)

    def get(self, tenant: str, task_id: str) -> Served:
        """What a request gets; loads it where it is not in memory, once for any number of callers.

        Raises `UnknownTask`, `StaleVersion`, `CorruptPrefix`.
        """
        while True:
            pointer = self._pointers.get_or_read((tenant, task_id), partial(self._read_pointer, tenant, task_id))
            version = pointer.version
            if version.stale:
                raise StaleVersion(task_id, version.version, version.backbone, self._backbone.fingerprint)
            try:
                prefix = self._cache.get_or_load(_cache_key(tenant, version), partial(self._load, tenant, version))
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
        version; all durably before this returns. `if_match` is the sha256 that the served version must have, or `*`
        for any; `if_none_match` wants that there is no such task.
        Raises `InvalidTaskId`, `PreconditionFailed`.
        """
        check_new_task_id(task_id, self._backbone.name)
        facts = Upload(
            sha256=hashlib.sha256(upload).hexdigest(),
            native_sha256=hashlib.sha256(native).hexdigest(),
            kind=kind,
            num_virtual_tokens=num_virtual_tokens,
            num_bytes=len(upload),
            backbone=self._backbone.fingerprint,
            backbone_checked=backbone_checked,
            created_at=datetime.now(UTC),
        )
        with self._writing:
            self._loose |= _hashes(tenant, facts)
            try:
                # Also where the same bytes turn out to be there already: it repairs a damaged file.
                for name, body in _files(facts, upload, native).items():
                    self._blobs.write(tenant, name, body)
                published = self._registry.publish(
                    tenant, task_id, facts, if_match=if_match, if_none_match=if_none_match
                )
            except CommitUncertain:
                raise  # a version that may need the files may be there: the next write looks again
            except StoreError:
                self._remove_loose_files()
                raise
            self._pointers.put((tenant, task_id), Pointer(published.version, published.config))
            self._remove_loose_files()
        return published

    def task(self, tenant: str, task_id: str) -> Task:
        return self._registry.task(tenant, task_id)

    def tasks(self, tenant: str, limit: int = 100, after: str | None = None) -> list[Task]:
        """Up to `limit` of the tenant's tasks in the order of their ids; `after` is the last id of the page before.

        Raises `InvalidTaskId` for an `after` that no task can have.
        """
        if after is not None:
            check_task_id(after)
        return self._registry.tasks(tenant, limit, after)

    def upload_bytes(self, tenant: str, task_id: str, version: int | None = None) -> tuple[bytes, TaskVersion]:
        """What was uploaded, byte for byte: as the served version or as `version`.

        Raises `UnknownVersion`, `CorruptPrefix`.
        """
        found = self._find(tenant, task_id, version)
        try:
            return self._read(tenant, _upload_name(found), found.sha256), found
        except CorruptPrefix:
            self._find(tenant, task_id, version)  # raises where it was deleted while it was being read
            raise

    def use_version(self, tenant: str, task_id: str, version: int, if_match: str | None = None) -> Task:
        """Serve an older (or newer) version. Raises `UnknownVersion`, `StaleVersion`, `PreconditionFailed`."""
        with self._writing:
            return self._remember(tenant, self._registry.use_version(tenant, task_id, version, if_match))

    def set_config(self, tenant: str, task_id: str, config: TaskConfig) -> Task:
        with self._writing:
            return self._remember(tenant, self._registry.set_config(tenant, task_id, config))

    def delete(self, tenant: str, task_id: str, if_match: str | None = None) -> None:
        """Forget the task and remove the files that no other task of the tenant's needs. Raises `PreconditionFailed`.

        A request that holds the prefix is not concerned. The same name uploaded anew starts at version 1.
        """
        with self._writing:
            task = self._registry.delete(tenant, task_id, if_match)
            self._pointers.drop((tenant, task_id))
            for version in task.versions:
                self._loose |= _hashes(tenant, version)
                self._cache.discard(_cache_key(tenant, version))
            self._remove_loose_files()

    def ping(self) -> None:
        """Raises `StoreUnavailable` where the directory or the registry cannot be reached."""
        self._blobs.ping()
        self._registry.ping()

    def close(self) -> None:
        self._registry.close()

    @property
    def stats(self) -> CacheStats:
        return self._cache.stats

    def _read_pointer(self, tenant: str, task_id: str) -> Pointer:
        return Pointer(*self._registry.served(tenant, task_id))

    def _find(self, tenant: str, task_id: str, version: int | None) -> TaskVersion:
        if version is None:
            return self._registry.served(tenant, task_id)[0]
        return self._registry.version(tenant, task_id, version)

    def _remember(self, tenant: str, task: Task) -> Task:
        self._pointers.put((tenant, task.task_id), Pointer(task.served, task.config))
        return task

    def _load(self, tenant: str, version: TaskVersion) -> Prefix:
        name = _native_name(version)
        body = self._read(tenant, name, version.native_sha256)
        try:
            prefix = parse(body, self._backbone.shape, self._backbone.fingerprint)
        except InvalidPrefix as error:
            raise CorruptPrefix(name, f"is no prefix of this backbone ({error})") from error
        if not isinstance(prefix, Prefix):
            raise CorruptPrefix(name, "is not in the native format")
        return replace(prefix, kind=version.kind)

    def _read(self, tenant: str, name: str, sha256: str) -> bytes:
        body = self._blobs.read(tenant, name)
        if hashlib.sha256(body).hexdigest() != sha256:
            raise CorruptPrefix(name, f"is damaged: its {len(body)} bytes are not those that were stored")
        return body

    def _remove_loose_files(self) -> None:
        """Remove the files that no version needs; what cannot be removed now is tried again after the next write."""
        with suppress(StoreError):  # litter is no reason to fail what was done
            for tenant, sha256 in tuple(self._loose):
                if not self._registry.needs(tenant, sha256):
                    for name in (_NATIVE.format(sha256), _FOREIGN.format(sha256)):
                        self._blobs.delete(tenant, name)
                self._loose.discard((tenant, sha256))


def _native_name(facts: Upload) -> str:
    return _NATIVE.format(facts.native_sha256)


def _upload_name(facts: Upload) -> str:
    return _native_name(facts) if facts.sha256 == facts.native_sha256 else _FOREIGN.format(facts.sha256)


def _files(facts: Upload, upload: bytes, native: bytes) -> Mapping[str, bytes]:
    return {_upload_name(facts): upload, _native_name(facts): native}


def _hashes(tenant: str, facts: Upload) -> set[tuple[str, str]]:
    return {(tenant, facts.sha256), (tenant, facts.native_sha256)}


def _cache_key(tenant: str, version: TaskVersion) -> tuple[str, str, str]:
    # The bytes, never the task: a task that was deleted and uploaded anew counts its versions from 1 again. The tenant,
    # so that how long a first use takes says nothing of other tenants' files.
    return tenant, version.native_sha256, version.kind


def _served(task_id: str, pointer: Pointer, prefix: Prefix) -> Served:
    return Served(task_id, pointer.version.version, prefix, pointer.config)
