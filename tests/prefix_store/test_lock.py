"""One process owns a directory, and no longer than it lives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefix_store.errors import StoreInUse
from prefix_store.lock import DirectoryLock
from prefix_store.store import PrefixStore
from tests.prefix_store.homes import in_a_directory
from tests.prefix_store.support import BACKBONE


@in_a_directory
def test_a_directory_that_is_open_is_refused_and_left_alone(store: PrefixStore, tmp_path: Path) -> None:
    half_written = tmp_path / "acme" / f"a.safetensors.{'0' * 16}.tmp"
    half_written.parent.mkdir()
    half_written.write_bytes(b"being written")
    with pytest.raises(StoreInUse, match="open"):
        PrefixStore(tmp_path, backbone=BACKBONE)
    assert half_written.exists()


@in_a_directory
def test_a_directory_can_be_opened_again_once_it_is_closed(store: PrefixStore, tmp_path: Path) -> None:
    store.close()
    PrefixStore(tmp_path, backbone=BACKBONE).close()


def test_an_opening_that_fails_keeps_no_lock(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite3").mkdir()
    for _ in range(2):
        with pytest.raises(Exception, match="registry failed"):
            PrefixStore(tmp_path, backbone=BACKBONE)


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path: Path) -> None:
    holder = f"""
from pathlib import Path
from prefix_store.lock import DirectoryLock
lock = DirectoryLock(Path({str(tmp_path)!r}))
print("locked", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(StoreInUse):
            DirectoryLock(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
    DirectoryLock(tmp_path).give_back()
