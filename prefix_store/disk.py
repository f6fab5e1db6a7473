"""Steps on a disk that outlast a loss of power, and what their failures become.

Knows paths and bytes. Knows nothing of what they are for.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefix_store.errors import OutOfSpace, StoreUnavailable

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT}
_IS_DAMAGED = {errno.EIO, errno.EISDIR}  # this one file is; its neighbours may be whole


def make_directory(folder: Path) -> None:
    """Make a folder, and those above it, so that they last."""
    if folder.is_dir():
        return
    make_directory(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        fsync_directory(folder.parent)
    except OSError:
        folder.rmdir()  # so that the next write makes, and syncs, it anew
        raise


def write_durably(path: Path, body: bytes) -> None:
    # Not retried: after a failed fsync the kernel has marked the pages clean, and a second one would say "done".
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def read_unless_damaged(path: Path) -> bytes | None:
    """None for a file that the disk does not give back. Raises `OSError` for all else: an outage damages nothing."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _IS_DAMAGED:
            raise
        return None


def fsync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise OutOfSpace(f"{action}: the disk is full; nothing was kept") from error
        raise StoreUnavailable(f"{action}: {error.strerror or error}") from error
