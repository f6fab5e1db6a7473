"""What the store asks of its files' place; and files in a directory, whole and durable or not there.

Knows names and bytes. Knows nothing of prefixes, tasks, versions or hashes.
"""

import errno
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

from prefix_store.disk import fsync_directory, make_directory, os_errors, read_unless_damaged, write_durably
from prefix_store.errors import CorruptPrefix
from prefix_store.names import file_key, tenant_folder

_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp")  # as `write` names them
_NO_HARD_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}


class Blobs(Protocol):
    """One folder per tenant. Names come from the store (hashes), never from a request. Thread-safe.

    Errors: `OutOfSpace`, `StoreUnavailable`, and `CorruptPrefix` for a missing file.
    """

    def write(self, tenant: str, name: str, body: bytes) -> None:
        """Durable when it returns; a reader sees the whole file or none. May raise `NameTaken`."""

    def repair(self, tenant: str, name: str, body: bytes) -> None:
        """Write a file anew, whatever is there."""

    def read(self, tenant: str, name: str) -> bytes: ...

    def delete(self, tenant: str, name: str) -> None:
        """A file that is not there is as good as deleted."""

    def sizes(self, tenant: str) -> dict[str, int]:
        """The tenant's files and their bytes, without reading them."""

    def copy(self, tenant: str, name: str, path: Path) -> None:
        """To a new file on this machine."""

    def sweep(self, is_litter: Callable[[str], bool], written_before: datetime) -> int:
        """Remove files, of any tenant, whose keys are litter and which are older; returns their bytes."""

    def ping(self) -> None: ...


class DirectoryBlobs:
    """`<root>/<tenant>/<name>`. One process owns the directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with os_errors(f"opening {root}"):
            make_directory(root)
            fsync_directory(root)  # holds the folders that a killed process made and did not live to sync
            for left_behind in root.glob("*/*.tmp"):  # by a process that was killed
                if _TEMPORARY.fullmatch(left_behind.name) and left_behind.is_file():
                    left_behind.unlink(missing_ok=True)

    def write(self, tenant: str, name: str, body: bytes) -> None:
        """Durable when it returns; a reader sees the old file or the new one. On any failure the temporary is gone.

        A file that is there already is written again, which repairs it if it was damaged.
        """
        with os_errors(f"writing {name}"):
            folder = self._folder(tenant)
            make_directory(folder)
            temporary = folder / f"{name}.{secrets.token_hex(8)}.tmp"
            try:
                write_durably(temporary, body)
                temporary.replace(folder / name)
            except BaseException:
                with suppress(OSError):  # the first failure is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
            fsync_directory(folder)

    repair = write

    def read(self, tenant: str, name: str) -> bytes:
        with os_errors(f"reading {name}"):
            try:
                return self._path(tenant, name).read_bytes()
            except FileNotFoundError as error:
                raise CorruptPrefix(name, "is missing") from error

    def delete(self, tenant: str, name: str) -> None:
        """A file that is not there is as good as deleted."""
        with os_errors(f"deleting {name}"):
            self._path(tenant, name).unlink(missing_ok=True)

    def sizes(self, tenant: str) -> dict[str, int]:
        """The tenant's files and their bytes, without reading them."""
        with os_errors(f"listing the files of {tenant!r}"):
            return {path.name: path.stat().st_size for path in self._folder(tenant).glob("*")}

    def copy(self, tenant: str, name: str, path: Path) -> None:
        """To a new file; as a hard link where it is on the same file system."""
        with os_errors(f"copying {name}"):
            try:
                path.hardlink_to(self._path(tenant, name))
            except FileNotFoundError as error:
                raise CorruptPrefix(name, "is missing") from error
            except OSError as error:
                if error.errno not in _NO_HARD_LINK:
                    raise
                body = read_unless_damaged(self._path(tenant, name))
                if body is None:
                    raise CorruptPrefix(name, "cannot be read") from error
                write_durably(path, body)

    def sweep(self, is_litter: Callable[[str], bool], written_before: datetime) -> int:
        """Remove files, of any tenant, whose keys are litter and which are older; returns their bytes."""
        num_bytes = 0
        with os_errors(f"sweeping {self._root}"):
            for path in self._root.glob("*/*"):
                if not is_litter(f"{path.parent.name}/{path.name}") or not path.is_file():
                    continue
                found = path.stat()
                if found.st_mtime < written_before.timestamp():
                    path.unlink()
                    num_bytes += found.st_size
        return num_bytes

    def ping(self) -> None:
        with os_errors(f"looking at {self._root}"):
            self._root.stat()

    def _folder(self, tenant: str) -> Path:
        return self._root / tenant_folder(tenant)

    def _path(self, tenant: str, name: str) -> Path:
        return self._root / file_key(tenant, name)
