"""One directory, one process: a lock that ends with the process, however that ends.

Knows one file. Knows nothing of what else the directory holds.
"""

import fcntl
from pathlib import Path

from prefix_store.disk import make_directory, os_errors
from prefix_store.errors import StoreInUse

_NAME = "lock"


class DirectoryLock:
    """Taken when it is made. Raises `StoreInUse` where another holder lives, `StoreUnavailable`, `OutOfSpace`."""

    def __init__(self, directory: Path) -> None:
        with os_errors(f"locking {directory}"):
            make_directory(directory)
            self._file = (directory / _NAME).open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise StoreInUse(f"another process has the store {directory} open; stop it first") from None
            except OSError:
                self._file.close()
                raise

    def give_back(self) -> None:
        self._file.close()
