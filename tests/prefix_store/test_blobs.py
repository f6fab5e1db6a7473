"""A file is whole and durable or not there, whatever fails while it is written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from prefix_store.blobs import DirectoryBlobs
from prefix_store.errors import CorruptPrefix, OutOfSpace, StoreError, StoreUnavailable


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Failing:
    """Stands in for a system call and fails from its nth call on."""

    def __init__(self, call: object, code: int, nth: int = 1) -> None:
        self.call, self.code, self.left = call, code, nth
        self.num_failures = 0

    def __call__(self, *arguments: object) -> object:
        self.left -= 1
        if self.left > 0:
            return self.call(*arguments)
        self.num_failures += 1
        raise OSError(self.code, os.strerror(self.code))


def test_what_was_written_is_read_and_overwritten_whole(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "deep" / "store")
    blobs.write("acme", "a.safetensors", b"one")
    blobs.write("acme", "a.safetensors", b"two")
    assert blobs.read("acme", "a.safetensors") == b"two"
    assert files_in(tmp_path) == {"deep/store/acme/a.safetensors"}


def test_a_file_can_be_read_by_who_may_read_the_folder(tmp_path: Path) -> None:
    DirectoryBlobs(tmp_path).write("acme", "a", b"x")
    assert stat.S_IMODE((tmp_path / "acme" / "a").stat().st_mode) & 0o600 == 0o600
    assert stat.S_IMODE((tmp_path / "acme" / "a").stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_deleted_file_is_gone_and_may_be_deleted_again(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.write("acme", "a", b"x")
    blobs.delete("acme", "a")
    blobs.delete("acme", "a")
    with pytest.raises(CorruptPrefix, match="missing"):
        blobs.read("acme", "a")


@pytest.mark.parametrize("tenant", ["..", "../escape", "/etc", "", "a\0b", "ACME", "é" * 300])
def test_no_tenants_name_leads_out_of_the_directory(tmp_path: Path, tenant: str) -> None:
    blobs = DirectoryBlobs(tmp_path / "store")
    blobs.write(tenant, "a", b"x")
    assert blobs.read(tenant, "a") == b"x"
    (written,) = files_in(tmp_path)
    assert written.startswith("store/~")


CALLS = {"opening": (Path, "open"), "fsync": (os, "fsync"), "rename": (Path, "replace")}
FAULTS = {
    errno.ENOSPC: OutOfSpace,
    errno.EDQUOT: OutOfSpace,
    errno.EIO: StoreUnavailable,
    errno.EROFS: StoreUnavailable,
    errno.EMFILE: StoreUnavailable,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("code", "error"), FAULTS.items(), ids=map(errno.errorcode.get, FAULTS))
def test_a_failed_write_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[StoreError]
) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.write("acme", "old", b"old")
    owner, name = CALLS[call]
    failing = Failing(getattr(owner, name), code)
    with monkeypatch.context() as fault:
        fault.setattr(owner, name, failing)
        with pytest.raises(error):
            blobs.write("acme", "new", b"new")
    assert failing.num_failures == 1  # a failed fsync above all is not tried again
    assert files_in(tmp_path) == {"acme/old"}
    blobs.write("acme", "new", b"new")
    assert blobs.read("acme", "new") == b"new"


def test_a_write_whose_folder_could_not_be_synced_is_not_answered_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.write("acme", "old", b"old")
    with monkeypatch.context() as fault:
        fault.setattr(os, "fsync", Failing(os.fsync, errno.EIO, nth=2))
        with pytest.raises(StoreUnavailable):
            blobs.write("acme", "new", b"new")


def test_a_tenants_folder_that_could_not_be_synced_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = DirectoryBlobs(tmp_path)
    with monkeypatch.context() as fault:
        fault.setattr(os, "fsync", Failing(os.fsync, errno.EIO))
        with pytest.raises(StoreUnavailable):
            blobs.write("acme", "a", b"x")
    assert not (tmp_path / "acme").exists()
    blobs.write("acme", "a", b"x")
    assert blobs.read("acme", "a") == b"x"


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    DirectoryBlobs(tmp_path).write("acme", "a.safetensors", b"x")
    for name in (f"b.safetensors.{'0' * 16}.tmp", "report.tmp", "b.safetensors.0123.tmp"):
        (tmp_path / "acme" / name).write_bytes(b"half")
    (tmp_path / "backups" / f"monday.{'0' * 16}.tmp").mkdir(parents=True)
    DirectoryBlobs(tmp_path)
    others = {"acme/report.tmp", "acme/b.safetensors.0123.tmp"}
    assert files_in(tmp_path) == {"acme/a.safetensors", *others}, "those are not the store's"


def test_a_directory_that_is_gone_is_noticed(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "store")
    blobs.ping()
    (tmp_path / "store").rmdir()
    with pytest.raises(StoreUnavailable):
        blobs.ping()
