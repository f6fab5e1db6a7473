"""Copies a store: the registry and the files it needs; and makes a store of such a copy.

What is made appears when it is done. A file that is found missing or damaged keeps no other from being copied: it is
left out, and told.

Knows folders, files and that their names are their hashes. Knows nothing of tasks.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefix_store.blobs import Blobs
from prefix_store.database import Database
from prefix_store.disk import fsync_directory, make_directory, os_errors, read_unless_damaged, write_durably
from prefix_store.errors import CorruptPrefix, StoreUnavailable, UnsuitablePlace
from prefix_store.files import StoredFile
from prefix_store.home import REGISTRY
from prefix_store.names import file_key


@dataclass(frozen=True, slots=True)
class Copied:
    """How many files were copied, and the names (`tenant/sha256.safetensors`) of those that were found to be missing or
    damaged. What files a damaged record needs cannot be known: a backup names the record."""

    num_files: int
    left_out: list[str]


def back_up(database: Database, blobs: Blobs, path: Path, files: Iterable[tuple[str, StoredFile]]) -> Copied:
    """Copy `database` and the tenants' `files` to `path`. What a file holds, only `restore` and `verify` look at.

    Raises `StoreUnavailable`, also where `path` is there already, and `OutOfSpace`.
    """
    with os_errors(f"backing up to {path}"), _whole(path) as copy:
        database.copy_to(copy / REGISTRY)
        _fsync_file(copy / REGISTRY)
        by_key = {file_key(tenant, file.name): (tenant, file) for tenant, file in files}
        missing = []
        for key, (tenant, file) in by_key.items():
            make_directory((copy / key).parent)
            try:
                blobs.copy(tenant, file.name, copy / key)
            except CorruptPrefix:
                missing.append(key)
        return Copied(len(by_key) - len(missing), missing)


def restore(path: Path, into: Path) -> Copied:
    """Make `into`, which must not be there, a store as the backup `path` has it. `verify` tells what that lacks.

    Raises `UnsuitablePlace` where `path` is no backup, `StoreUnavailable` and `OutOfSpace`.
    """
    if (path / f"{REGISTRY}-wal").exists():  # which may hold all there is; a backup has none
        raise UnsuitablePlace(
            f"{path} is no backup but the copy of a store in use; name a copy of it as --store itself"
        )
    if not (path / REGISTRY).exists():
        raise UnsuitablePlace(f"{path} is no backup: it has no {REGISTRY}")
    with os_errors(f"restoring {path} to {into}"), _whole(into) as copy:
        write_durably(copy / REGISTRY, (path / REGISTRY).read_bytes())
        num_files, damaged = 0, []
        for file in sorted(path.glob("*/*")):
            body = read_unless_damaged(file)
            if body is None or hashlib.sha256(body).hexdigest() != file.stem:
                damaged.append(f"{file.parent.name}/{file.name}")
                continue
            make_directory(copy / file.parent.name)
            write_durably(copy / file.parent.name / file.name, body)
            num_files += 1
        return Copied(num_files, damaged)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A new directory beside `path` that becomes `path` when all of it is durable, and is removed if not."""
    if path.exists():
        raise StoreUnavailable(f"{path} is there already; name a directory that is not")
    make_directory(path.parent)
    building = path.parent / f"{path.name}.{secrets.token_hex(8)}.tmp"
    building.mkdir()
    try:
        yield building
        for folder in (*(found for found in building.iterdir() if found.is_dir()), building):
            fsync_directory(folder)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
