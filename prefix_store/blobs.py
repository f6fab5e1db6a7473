"""Files in a directory, one folder per tenant, written so that a file is whole and durable or not there.

Knows names and bytes. Knows nothing of prefixes, tasks, versions or hashes.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefix_store.errors import CorruptPrefix, OutOfSpace, StoreUnavailable
from prefix_store.names import tenant_folder

_TEMPORARY = ".tmp"
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}


class DirectoryBlobs:
    """`<root>/<tenant>/<name>`. Errors: `OutOfSpace`, `StoreUnavailable`, and `CorruptPrefix` for a missing file.

    Names come from the store (hashes), never from a request. One process owns the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with _os_errors(f"opening {root}"):
            _make_directory(root)
            _fsync_directory(root)  # holds the folders that a killed process made and did not live to sync
            for left_behind in root.glob(f"*/*{_TEMPORARY}"):  # by a process that was killed
                left_behind.unlink(missing_ok=True)

    def write(self, tenant: str, name: str, body: bytes) -> None:
        """Durable when it returns; a reader sees the old file or the new one. On any failure the temporary is gone.

        A file that is there already is written again, which repairs it if it was damaged.
        """
        with _os_errors(f"writing {name}"):
            folder = self._folder(tenant)
            _make_directory(folder)
            temporary = folder / f"{name}.{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                _write_durably(temporary, body)
                temporary.replace(folder / name)
            except BaseException:
                with suppress(OSError):  # the first failure is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
            _fsync_directory(folder)

    def read(self, tenant: str, name: str) -> bytes:
        with _os_errors(f"reading {name}"):
            try:
                return (self._folder(tenant) / name).read_bytes()
            except FileNotFoundError as error:
                raise CorruptPrefix(name, "is missing") from error

    def delete(self, tenant: str, name: str) -> None:
        """A file that is not there is as good as deleted."""
        with _os_errors(f"deleting {name}"):
            (self._folder(tenant) / name).unlink(missing_ok=True)

    def ping(self) -> None:
        with _os_errors(f"looking at {self._root}"):
            self._root.stat()

    def _folder(self, tenant: str) -> Path:
        return self._root / tenant_folder(tenant)


def _make_directory(folder: Path) -> None:
    """Make a folder, and those above it, so that they last."""
    if folder.is_dir():
        return
    _make_directory(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        _fsync_directory(folder.parent)
    except OSError:
        folder.rmdir()  # so that the next write makes, and syncs, it anew
        raise


def _write_durably(path: Path, body: bytes) -> None:
    # Not retried: after a failed fsync the kernel has marked the pages clean, and a second one would say "done".
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _fsync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _os_errors(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise OutOfSpace(f"{action}: the disk is full; nothing was kept") from error
        raise StoreUnavailable(f"{action}: {error.strerror or error}") from error
