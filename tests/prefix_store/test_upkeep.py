"""Damage is found and taken out of service, litter goes when told, and a backup is a store."""

import errno
import os
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from prefix_store.backup import Copied, restore
from prefix_store.blobs import DirectoryBlobs
from prefix_store.errors import (
    CorruptPrefix,
    CorruptRecord,
    OutOfSpace,
    Quarantined,
    StoreUnavailable,
    UnknownVersion,
    UnsuitablePlace,
)
from prefix_store.store import PrefixStore
from prefix_store.tenants import Scope, Tenant
from tests.prefix_store.homes import DirectoryHome, Home, flip_a_bit, in_a_directory, key_of
from tests.prefix_store.support import BACKBONE, keys_and_values, native_file, publish


def test_a_sound_store_has_no_damage(store: PrefixStore) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    assert store.upkeep.scan() == []
    assert list(store.upkeep.verify_each()) == [None, None]


def test_a_scan_finds_what_is_missing_or_of_another_size_without_reading(store: PrefixStore, home: Home) -> None:
    for seed, task_id in enumerate(["gone", "short", "flipped", "sound"]):
        publish(store, task_id, seed=seed)
    home.remove(key_of(store, "gone"))
    home.write(key_of(store, "short"), b"0123456789")
    flip_a_bit(home, key_of(store, "flipped"))
    damage = store.upkeep.scan()
    assert [found.where for found in damage] == ["default/gone/1", "default/short/1"]
    assert "missing" in damage[0].what
    assert "10 bytes" in damage[1].what


def test_a_verification_quarantines_a_damaged_version_and_no_other(store: PrefixStore, home: Home) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    store.get("default", "poet")
    flip_a_bit(home, key_of(store))
    assert [found.where for found in store.upkeep.verify()] == ["default/poet/1"]
    assert store.cached("default", "poet") is None
    with pytest.raises(Quarantined, match="damaged"):
        store.get("default", "poet")
    assert store.get("default", "clerk").version == 1
    assert len(store.upkeep.verify()) == 1


def test_the_same_bytes_repair_a_version_and_release_it(store: PrefixStore, home: Home) -> None:
    publish(store, seed=1)
    flip_a_bit(home, key_of(store))
    store.upkeep.verify()
    published = publish(store, seed=1)
    assert (published.version.version, published.changed) == (1, True)
    assert torch.equal(store.get("default", "poet").prefix.past_key_values, keys_and_values(1))
    assert store.upkeep.verify() == []


def test_a_quarantined_version_is_served_no_more_until_it_is_uploaded_again(store: PrefixStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    store.get("default", "poet")
    task = store.quarantine("default", "poet", 2, "failed three times")
    assert [version.quarantined for version in task.versions] == [None, "failed three times"]
    with pytest.raises(Quarantined, match="failed three times"):
        store.get("default", "poet")
    store.patch("default", "poet", version=1)
    assert store.get("default", "poet").version == 1
    with pytest.raises(Quarantined):
        store.patch("default", "poet", version=2)
    publish(store, seed=2, serve=False)
    assert store.patch("default", "poet", version=2).served_version == 2


def test_a_version_compiled_to_something_else_by_now_is_not_released_but_followed_by_a_new_one(
    store: PrefixStore, home: Home
) -> None:
    """Its upload cannot repair its native file any more."""
    text = {"upload": b"a text", "kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    store.publish("default", "poet", native=native_file(1), **text)
    assert store.publish("default", "poet", native=native_file(2), **text).version.version == 1
    flip_a_bit(home, key_of(store))
    assert len(store.upkeep.verify()) == 1
    published = store.publish("default", "poet", native=native_file(2), **text)
    assert (published.version.version, published.changed) == (2, True)
    assert torch.equal(store.get("default", "poet").prefix.past_key_values, keys_and_values(2))
    assert store.publish("default", "poet", native=native_file(3), **text).version.version == 2
    assert not store.publish("default", "poet", native=native_file(1), **text).changed, "what serves well serves on"
    assert [version.quarantined is None for version in store.task("default", "poet").versions] == [False, True]


def test_a_version_uploaded_anew_under_its_number_is_not_quarantined_for_the_one_before(store: PrefixStore) -> None:
    publish(store, seed=1)
    failing = store.get("default", "poet")
    store.delete("default", "poet")
    publish(store, seed=2)
    with pytest.raises(UnknownVersion):
        store.quarantine("default", "poet", 1, "it fails", failing.prefix.revision)
    sound = store.get("default", "poet")
    store.quarantine("default", "poet", 1, "it fails", sound.prefix.revision)
    with pytest.raises(Quarantined):
        store.get("default", "poet")


@in_a_directory
def test_a_file_that_cannot_be_read_does_not_keep_the_others_from_being_looked_at(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, task_id in enumerate(("clerk", "poet", "zoo")):
        publish(store, task_id, seed=seed)
    flip_a_bit(home, key_of(store, "zoo"))
    unreadable = key_of(store, "clerk").rpartition("/")[2]
    read = DirectoryBlobs.read

    def fail(blobs: DirectoryBlobs, tenant: str, name: str) -> bytes:
        if name == unreadable:
            raise StoreUnavailable("input/output error")
        return read(blobs, tenant, name)

    monkeypatch.setattr(DirectoryBlobs, "read", fail)
    found = store.upkeep.verify()
    assert [damage.where for damage in found] == ["default/clerk/1", "default/zoo/1"]
    assert found[0].what == "input/output error"
    monkeypatch.setattr(DirectoryBlobs, "ping", lambda blobs: fail(blobs, "", unreadable))
    with pytest.raises(StoreUnavailable):  # nothing can be read: that says nothing of a version
        store.upkeep.verify()
    monkeypatch.undo()
    assert store.get("default", "clerk").version == 1, "it may be read again, and is not out of service"
    with pytest.raises(Quarantined):
        store.get("default", "zoo")


def test_a_quarantine_outlives_the_process(store: PrefixStore, home: Home) -> None:
    publish(store)
    store.quarantine("default", "poet", 1, "it fails")
    store.close()
    again = home.open()
    with pytest.raises(Quarantined, match="it fails"):
        again.get("default", "poet")
    again.close()


def test_a_task_deleted_while_it_is_verified_is_no_damage(store: PrefixStore) -> None:
    publish(store, "poet", seed=1)
    publish(store, "zoo", seed=2)
    pass_over = store.upkeep.verify_each()
    assert next(pass_over) is None
    store.delete("default", "zoo")
    assert list(pass_over) == [None]


def test_what_is_uploaded_again_is_served_where_it_cannot_repair_a_damaged_file(store: PrefixStore, home: Home) -> None:
    """Though nobody has found the damage yet: who uploads again was told that this repairs it."""
    text = {"upload": b"a text", "kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    store.publish("default", "poet", native=native_file(1), **text)
    flip_a_bit(home, key_of(store))
    with pytest.raises(CorruptPrefix):
        store.get("default", "poet")
    published = store.publish("default", "poet", native=native_file(2), if_match="*", **text)
    assert (published.version.version, published.changed) == (2, True)
    assert torch.equal(store.get("default", "poet").prefix.past_key_values, keys_and_values(2))
    assert store.upkeep.verify() == [], "what was replaced is of no use to anybody, and no news"
    assert store.upkeep.scan() == []


def test_a_damaged_version_that_gets_no_requests_is_told_until_it_is_repaired(store: PrefixStore, home: Home) -> None:
    publish(store, seed=1)
    key = key_of(store)
    publish(store, seed=2)
    flip_a_bit(home, key)
    for _ in range(2):
        assert [found.where for found in store.upkeep.verify()] == ["default/poet/1"]
    publish(store, seed=1, serve=False)
    assert store.upkeep.verify() == []


def test_a_damaged_upload_is_told_and_what_was_made_of_it_serves_on(store: PrefixStore, home: Home) -> None:
    text = {"upload": b"a text", "kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    store.publish("default", "poet", native=native_file(1), **text)
    (upload,) = home.files() - {key_of(store)}
    flip_a_bit(home, upload)
    assert [found.where for found in store.upkeep.verify()] == ["default/poet/1"]
    assert store.get("default", "poet").version == 1
    store.publish("default", "poet", native=native_file(1), **text)
    assert store.upkeep.verify() == []


def test_a_damaged_version_keeps_no_other_of_its_task_from_being_served_or_taken_out(store: PrefixStore) -> None:
    for seed in (1, 2, 3):
        publish(store, "poet", seed=seed)
    damage(store, "UPDATE versions SET num_virtual_tokens = 4 WHERE version = 1")
    assert store.patch("default", "poet", version=2).served_version == 2
    assert store.get("default", "poet").version == 2
    assert [found.version for found in store.quarantine("default", "poet", 2, "it fails").versions] == [2, 3]
    with pytest.raises(Quarantined):
        store.get("default", "poet")
    with pytest.raises(CorruptRecord):
        store.patch("default", "poet", version=1)
    with pytest.raises(CorruptRecord):
        store.task("default", "poet")


@in_a_directory
def test_a_sweep_removes_old_files_that_nothing_needs_and_no_others(
    store: PrefixStore, home: Home, tmp_path: Path
) -> None:
    publish(store)
    old, new = tmp_path / "default" / f"{'0' * 64}.upload", tmp_path / "gone" / f"{'1' * 64}.safetensors"
    foreign = [tmp_path / name for name in ("default/old.upload", "src/model.safetensors", f"src/{'0' * 64}.py")]
    for path in (old, new, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    hours_ago = time.time() - 7200
    for path in (old, *foreign, tmp_path / key_of(store)):
        os.utime(path, (hours_ago, hours_ago))
    assert store.upkeep.sweep() == 5
    assert not old.exists()
    assert new.exists()
    assert all(path.exists() for path in foreign), "they are not the store's"
    assert store.upkeep.sweep(timedelta(seconds=-10)) == 5
    assert store.upkeep.verify() == []


def test_a_sweep_leaves_what_is_needed_however_old_and_what_is_new(store: PrefixStore, home: Home) -> None:
    publish(store)
    foreign = {"gone/model.safetensors", f"gone/{'0' * 64}.json"}
    for key in (f"gone/{'0' * 64}.upload", *foreign):
        home.write(key, b"12345")
    assert store.upkeep.sweep() == 0
    assert store.upkeep.sweep(timedelta(seconds=-10)) == 5
    assert home.files() == {key_of(store), *foreign}
    assert store.upkeep.verify() == []


def test_a_store_with_a_damaged_record_is_not_swept(store: PrefixStore, home: Home) -> None:
    publish(store)
    damage(store, "UPDATE versions SET native_sha256 = 'x'")
    with pytest.raises(CorruptRecord):
        store.upkeep.sweep(timedelta(seconds=-10))
    assert len(home.files()) == 1


def damage(store: PrefixStore, statement: str) -> None:
    with store._database.writing() as connection:
        connection.exec_driver_sql(statement)


RECORDS = {
    "a task's served version": "UPDATE tasks SET served_version = 2 WHERE task_id = 'poet'",
    "a task's settings": "UPDATE tasks SET config = '{' WHERE task_id = 'poet'",
    "a task's traffic": "UPDATE tasks SET traffic = '{\"1\": 1.0}' WHERE task_id = 'poet'",
    "a public task": "UPDATE tasks SET public = true WHERE task_id = 'poet'",
    "a version's hash": f"UPDATE versions SET native_sha256 = '{'0' * 64}' WHERE task_id = 'poet' AND version = 3",
    "a version's moment": "UPDATE versions SET created_at = 'x' WHERE task_id = 'poet'",
    "a version's number of tokens": "UPDATE versions SET num_virtual_tokens = 4 WHERE task_id = 'poet'",
    "a quarantine that was lifted": "UPDATE versions SET quarantined = NULL WHERE task_id = 'poet'",
    "a version that is gone": "DELETE FROM versions WHERE task_id = 'poet' AND version = 3",
    "a checksum": "UPDATE tasks SET checksum = 'x' WHERE task_id = 'poet'",
}


NOT_TEXT = "UPDATE tasks SET config = CAST(x'ff00ff' AS TEXT) WHERE task_id = 'poet'"  # which PostgreSQL never stores


@in_a_directory
def test_a_record_with_bytes_that_are_no_text_fails_its_own_task(store: PrefixStore, home: Home) -> None:
    damaged_record_fails_its_own_task(store, home, NOT_TEXT)


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_fails_its_own_task_and_no_other(store: PrefixStore, home: Home, record: str) -> None:
    damaged_record_fails_its_own_task(store, home, RECORDS[record])


def damaged_record_fails_its_own_task(store: PrefixStore, home: Home, statement: str) -> None:
    for seed in (1, 2, 3):
        publish(store, "poet", seed=seed)
    publish(store, "clerk", seed=4)
    store.quarantine("default", "poet", 3, "it fails")
    damage(store, statement)
    store.close()
    again = home.open()
    for ask in (again.get, again.task):
        with pytest.raises(CorruptRecord):
            ask("default", "poet")
    with pytest.raises(CorruptRecord):
        publish(again, "poet", seed=5)
    assert again.get("default", "clerk").version == 1
    assert [task.task_id for task in again.tasks("default", limit=1)] == ["clerk"]
    assert any("poet" in found.where for found in again.upkeep.scan())
    again.delete("default", "poet")
    assert again.upkeep.scan() == []
    assert publish(again, "poet", seed=5).created_task
    again.close()


def test_a_damaged_tenant_or_key_is_found_by_a_scan(store: PrefixStore) -> None:
    store.tenants.add_tenant(Tenant(name="acme"))
    key, _ = store.tenants.create_key("acme", {Scope.TASKS})
    damage(store, "UPDATE tenants SET weight = 9.0")
    damage(store, "UPDATE api_keys SET scopes = 'operator'")
    assert {found.where for found in store.upkeep.scan()} == {"tenants acme", f"api_keys {key.key_id}"}


@in_a_directory
def test_a_damaged_index_is_found_by_a_scan(store: PrefixStore) -> None:
    publish(store)
    damage(store, "PRAGMA writable_schema=ON")
    damage(
        store,
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'public_tasks')"
        " WHERE name = 'versions_by_sha256'",
    )
    store._database._engine.dispose()
    assert [found.where for found in store.upkeep.scan()][:1] == ["registry"]


@in_a_directory
def test_a_backup_is_a_store_as_it_was(store: PrefixStore, home: Home, tmp_path: Path) -> None:
    publish(store, "poet", seed=1)
    publish(store, "poet", seed=2)
    store.tenants.add_tenant(Tenant(name="acme"))
    publish(store, "clerk", seed=3, tenant="acme")
    before = store.tasks("default")
    assert store.upkeep.backup(tmp_path / "backup") == Copied(3, [])
    publish(store, "poet", seed=4)
    store.delete("acme", "clerk")

    assert restore(tmp_path / "backup", tmp_path / "restored") == Copied(3, [])
    again = PrefixStore(tmp_path / "restored", backbone=BACKBONE)
    assert again.tasks("default") == before
    assert torch.equal(again.get("acme", "clerk").prefix.past_key_values, keys_and_values(3))
    assert again.tenants.tenant("acme") == Tenant(name="acme")
    assert again.upkeep.verify() == []
    again.close()


@in_a_directory
def test_a_backup_takes_no_place_of_anything(store: PrefixStore, home: Home, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    with pytest.raises(StoreUnavailable, match="there already"):
        store.upkeep.backup(tmp_path / "backup")


@in_a_directory
def test_a_backup_that_fails_leaves_nothing(
    store: PrefixStore, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(store)
    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(OutOfSpace):
        store.upkeep.backup(tmp_path / "backups" / "today")
    assert list((tmp_path / "backups").iterdir()) == []


@in_a_directory
def test_a_registry_that_has_no_room_in_the_backup_is_told_and_leaves_nothing(
    store: PrefixStore, home: Home, tmp_path: Path
) -> None:
    publish(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises((OutOfSpace, StoreUnavailable), match="the registry was not copied"):
            store.upkeep.backup(tmp_path / "backups" / "today")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "backups").iterdir()) == []


def test_looking_for_damage_ends_when_the_store_is_closed(store: PrefixStore) -> None:
    for seed in range(3):
        publish(store, seed=seed)
    looking = store.upkeep.verify_each()
    assert next(looking) is None
    store.close()
    with pytest.raises(StoreUnavailable, match="being closed"):
        next(looking)


@in_a_directory
def test_a_backup_tells_of_a_record_whose_files_it_cannot_know(store: PrefixStore, home: Home, tmp_path: Path) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    damage(store, "UPDATE versions SET num_virtual_tokens = 4 WHERE task_id = 'poet'")
    copied = store.upkeep.backup(tmp_path / "backup")
    assert copied.num_files == 1
    assert [("poet" in name, name.startswith("files of versions")) for name in copied.left_out] == [(True, True)]


@in_a_directory
def test_a_missing_file_is_left_out_of_a_backup_and_told(store: PrefixStore, home: Home, tmp_path: Path) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    gone = key_of(store)
    home.remove(gone)
    assert store.upkeep.backup(tmp_path / "backup") == Copied(1, [gone])
    assert restore(tmp_path / "backup", tmp_path / "restored") == Copied(1, [])
    again = PrefixStore(tmp_path / "restored", backbone=BACKBONE)
    assert torch.equal(again.get("default", "clerk").prefix.past_key_values, keys_and_values(2))
    with pytest.raises(CorruptPrefix, match="missing"):
        again.get("default", "poet")
    again.close()


def failing_to_read(name: str, code: int) -> Callable[[Path], bytes]:
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == name:
            raise OSError(code, os.strerror(code))
        return read(path)

    return read_bytes


@in_a_directory
def test_a_backup_to_another_disk_leaves_out_what_this_one_does_not_give_back(
    store: PrefixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_another_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    unreadable = key_of(store)
    monkeypatch.setattr(Path, "hardlink_to", to_another_disk)
    monkeypatch.setattr(Path, "read_bytes", failing_to_read(Path(unreadable).name, errno.EIO))
    assert store.upkeep.backup(tmp_path / "backup") == Copied(1, [unreadable])
    assert [file.is_file() for file in (tmp_path / "backup").glob("*/*")] == [True]


@in_a_directory
def test_an_outage_is_no_damage(store: PrefixStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    store.upkeep.backup(tmp_path / "backup")
    monkeypatch.setattr(Path, "read_bytes", failing_to_read(Path(key_of(store)).name, errno.ESTALE))
    with pytest.raises(StoreUnavailable):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@in_a_directory
def test_a_copy_of_a_store_in_use_is_no_backup(store: PrefixStore, tmp_path: Path) -> None:
    """Its newest commits are in a log that a backup has not got."""
    publish(store)
    with pytest.raises(UnsuitablePlace, match="no backup"):
        restore(tmp_path, tmp_path.parent / "restored")


def test_a_folder_without_a_registry_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(UnsuitablePlace, match="it has no registry"):
        restore(tmp_path, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@in_a_directory
def test_what_is_damaged_in_a_backup_is_left_out_and_told(store: PrefixStore, home: Home, tmp_path: Path) -> None:
    for seed, task_id in enumerate(["poet", "clerk", "unreadable"]):
        publish(store, task_id, seed=seed)
    store.upkeep.backup(tmp_path / "backup")
    damaged, unreadable = key_of(store), key_of(store, "unreadable")
    flip_a_bit(DirectoryHome(tmp_path / "backup"), damaged)
    (tmp_path / "backup" / unreadable).unlink()
    (tmp_path / "backup" / unreadable).mkdir()  # which the system does not read as a file
    copied = restore(tmp_path / "backup", tmp_path / "restored")
    assert copied == Copied(1, sorted([damaged, unreadable]))
    again = PrefixStore(tmp_path / "restored", backbone=BACKBONE)
    assert again.get("default", "clerk").version == 1
    assert {found.where for found in again.upkeep.verify()} == {"default/poet/1", "default/unreadable/1"}
    again.close()
