"""Files in a directory, one folder per tenant, written so that a file is whole and durable or not there.

Knows names and bytes. Knows nothing of prefixes, tasks, versions or hashes.
"""

import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from prefix_store.disk import fsync_directory, make_directory, os_errors, write_durably
from prefix_store.errors import CorruptPrefix
from prefix_store.names import tenant_folder

_TEMPORARY = ".tmp"


class DirectoryBlobs:
    """`<root>/<tenant>/<name>`. Errors: `OutOfSpace`, `StoreUnavailable`, and `CorruptPrefix` for a missing file.

    Names come from the store (hashes), never from a request. One process owns the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with os_errors(f"opening {root}"):
            make_directory(root)
            fsync_directory(root)  # holds the folders that a killed process made and did not live to sync
            for left_behind in root.glob(f"*/*{_TEMPORARY}"):  # by a process that was killed
                left_behind.unlink(missing_ok=True)

    def write(self, tenant: str, name: str, body: bytes) -> None:
        """Durable when it returns; a reader sees the old file or the new one. On any failure the temporary is gone.

        A file that is there already is written again, which repairs it if it was damaged.
        """
        with os_errors(f"writing {name}"):
            folder = self._folder(tenant)
            make_directory(folder)
            temporary = folder / f"{name}.{secrets.token_hex(8)}{_TEMPORARY}"
            try:
                write_durably(temporary, body)
                temporary.replace(folder / name)
            except BaseException:
                with suppress(OSError):  # the first failure is the one to tell
                    temporary.unlink(missing_ok=True)
                raise
            fsync_directory(folder)

    def read(self, tenant: str, name: str) -> bytes:
        with os_errors(f"reading {name}"):
            try:
                return self.path(tenant, name).read_bytes()
            except FileNotFoundError as error:
                raise CorruptPrefix(name, "is missing") from error

    def delete(self, tenant: str, name: str) -> None:
        """A file that is not there is as good as deleted."""
        with os_errors(f"deleting {name}"):
            self.path(tenant, name).unlink(missing_ok=True)

    def sizes(self, tenant: str) -> dict[str, int]:
        """The tenant's files and their bytes, without reading them."""
        with os_errors(f"listing the files of {tenant!r}"):
            return {path.name: path.stat().st_size for path in self._folder(tenant).glob("*")}

    def path(self, tenant: str, name: str) -> Path:
        return self._folder(tenant) / name

    def remove_others(self, needed: Collection[Path], written_before: float) -> int:
        """Remove files, of any tenant, that are not in `needed` and older than that moment (seconds since 1970).

        Returns how many bytes that were.
        """
        num_bytes = 0
        with os_errors(f"sweeping {self._root}"):
            for path in self._root.glob("*/*"):
                found = path.stat()
                if path not in needed and found.st_mtime < written_before and path.is_file():
                    path.unlink()
                    num_bytes += found.st_size
        return num_bytes

    def ping(self) -> None:
        with os_errors(f"looking at {self._root}"):
            self._root.stat()

    def _folder(self, tenant: str) -> Path:
        return self._root / tenant_folder(tenant)
