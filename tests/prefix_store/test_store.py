"""What the server relies on: publish, look up, roll back, delete; and what a fault, a kill or another backbone does."""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
import torch

from prefix_store import blobs, registry
from prefix_store.errors import (
    CommitUncertain,
    CorruptPrefix,
    InvalidTaskId,
    OutOfSpace,
    PreconditionFailed,
    QuotaExceeded,
    StaleVersion,
    StoreUnavailable,
    UnknownTask,
    UnknownVersion,
)
from prefix_store.pointers import ServedPointers
from prefix_store.registry import Registry
from prefix_store.store import PrefixStore
from prefix_store.tasks import Published, TaskConfig
from prefix_store.tenants import Tenant, TenantLimits
from tests.prefix_store.durability import Child
from tests.prefix_store.homes import Home, flip_a_bit, in_a_directory, key_of
from tests.prefix_store.support import BACKBONE, OTHER_BACKBONE, keys_and_values, native_file, publish


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def publish_text(store: PrefixStore, text: bytes, seed: int, task_id: str = "poet") -> Published:
    return store.publish(
        "default",
        task_id,
        upload=text,
        native=native_file(seed),
        kind="text",
        num_virtual_tokens=3,
        backbone_checked=True,
    )


def test_what_was_published_is_served(store: PrefixStore) -> None:
    published = publish(store, seed=1)
    assert published.created_task
    assert published.changed
    served = store.get("default", "poet")
    assert (served.task_id, served.version, served.config) == ("poet", 1, TaskConfig())
    assert torch.equal(served.prefix.past_key_values, keys_and_values(1))
    assert served.prefix.revision == published.version.native_sha256 == sha256(native_file(1))


def test_nothing_is_cached_before_the_first_use_and_all_after(store: PrefixStore) -> None:
    publish(store)
    assert store.cached("default", "poet") is None
    served = store.get("default", "poet")
    cached = store.cached("default", "poet")
    assert cached is not None
    assert cached.prefix is served.prefix


@in_a_directory
def test_cached_needs_neither_registry_nor_files(store: PrefixStore, tmp_path: Path) -> None:
    publish(store)
    store.get("default", "poet")
    store.close()
    for path in (*tmp_path.glob("*/*"), *tmp_path.glob("registry*")):
        path.unlink()
    assert store.cached("default", "poet") is not None


def test_a_replacement_is_served_next_and_does_not_touch_who_holds_the_former(store: PrefixStore) -> None:
    publish(store, seed=1)
    before = store.get("default", "poet")
    assert publish(store, seed=2).version.version == 2
    assert store.cached("default", "poet") is None
    after = store.get("default", "poet")
    assert torch.equal(after.prefix.past_key_values, keys_and_values(2))
    assert torch.equal(before.prefix.past_key_values, keys_and_values(1))


def test_the_served_versions_own_bytes_change_nothing(store: PrefixStore) -> None:
    first = publish(store)
    again = publish(store)
    assert not again.changed
    assert not again.created_task
    assert again.version == first.version
    assert len(store.task("default", "poet").versions) == 1


def test_an_older_versions_bytes_serve_that_one_again(store: PrefixStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    again = publish(store, seed=1)
    assert again.changed
    assert again.version.version == 1
    task = store.task("default", "poet")
    assert (task.served_version, len(task.versions)) == (1, 2)
    assert store.get("default", "poet").version == 1


def test_a_rollback_serves_the_older_version(store: PrefixStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    assert store.patch("default", "poet", version=1).served_version == 1
    assert torch.equal(store.get("default", "poet").prefix.past_key_values, keys_and_values(1))
    with pytest.raises(UnknownVersion):
        store.patch("default", "poet", version=3)


def test_a_config_is_served_at_once_and_outlives_versions(store: PrefixStore) -> None:
    publish(store, seed=1)
    store.get("default", "poet")
    config = TaskConfig(prompt_template="{inputs}:", parameters={"top_k": 5})
    store.patch("default", "poet", change_config=lambda _: config)
    cached = store.cached("default", "poet")
    assert cached is not None
    assert cached.config == config
    publish(store, seed=2)
    assert store.get("default", "poet").config == config


def test_a_deleted_task_is_gone_with_its_files(store: PrefixStore, home: Home) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    held = store.get("default", "poet")
    store.delete("default", "poet")
    assert store.cached("default", "poet") is None
    for ask in (store.get, store.task, store.upload_bytes, store.delete):
        with pytest.raises(UnknownTask):
            ask("default", "poet")
    assert home.files() == set()
    assert store.stats.num_bytes == 0
    assert torch.equal(held.prefix.past_key_values, keys_and_values(2))


def test_a_task_that_is_uploaded_anew_starts_at_1_with_its_new_bytes(store: PrefixStore) -> None:
    publish(store, seed=1)
    store.get("default", "poet")
    store.delete("default", "poet")
    assert publish(store, seed=2).version.version == 1
    assert torch.equal(store.get("default", "poet").prefix.past_key_values, keys_and_values(2))


@in_a_directory
def test_a_file_stays_while_another_task_of_the_tenant_needs_it(store: PrefixStore, home: Home) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=1)
    assert len(home.files()) == 1
    store.delete("default", "poet")
    assert store.get("default", "clerk").prefix.revision == sha256(native_file(1))


def test_tenants_share_neither_tasks_nor_files_nor_memory(store: PrefixStore, home: Home) -> None:
    publish(store, tenant="acme", seed=1)
    with pytest.raises(UnknownTask):
        store.get("zeta", "poet")
    publish(store, tenant="zeta", seed=1)
    assert len(home.files()) == 2
    store.get("acme", "poet")
    assert store.cached("zeta", "poet") is None
    store.get("zeta", "poet")
    assert store.stats.loads == 2
    store.delete("acme", "poet")
    assert store.get("zeta", "poet").version == 1
    assert [task.task_id for task in store.tasks("acme")] == []


def test_a_foreign_upload_comes_back_byte_for_byte_and_its_native_file_is_served(store: PrefixStore) -> None:
    published = publish_text(store, b'{"text": "Be brief."}', seed=1)
    assert published.version.sha256 == sha256(b'{"text": "Be brief."}')
    assert published.version.native_sha256 == sha256(native_file(1))
    body, version = store.upload_bytes("default", "poet")
    assert body == b'{"text": "Be brief."}'
    assert version == published.version
    served = store.get("default", "poet")
    assert served.prefix.kind == "text"
    assert served.prefix.revision == sha256(native_file(1))


def test_any_versions_upload_can_be_fetched(store: PrefixStore) -> None:
    publish(store, seed=1)
    publish_text(store, b"text", seed=2)
    assert store.upload_bytes("default", "poet", 1)[0] == native_file(1)
    assert store.upload_bytes("default", "poet", 2)[0] == b"text"
    assert store.upload_bytes("default", "poet")[1].version == 2
    with pytest.raises(UnknownVersion):
        store.upload_bytes("default", "poet", 3)


def test_a_task_cannot_take_a_reserved_or_impossible_name(store: PrefixStore) -> None:
    for task_id in ("base", "tgi", BACKBONE.name, "..", "a/b", ""):
        with pytest.raises(InvalidTaskId):
            publish(store, task_id)
    with pytest.raises(InvalidTaskId):
        store.tasks("default", after="\ud800")


def test_preconditions_compare_with_the_served_version(store: PrefixStore, home: Home) -> None:
    with pytest.raises(PreconditionFailed):
        publish(store, if_match="*")
    first = publish(store, seed=1, if_none_match=True)
    files = home.files()
    with pytest.raises(PreconditionFailed):
        publish(store, seed=2, if_none_match=True)
    with pytest.raises(PreconditionFailed):
        publish(store, seed=2, if_match=sha256(b""))
    with pytest.raises(PreconditionFailed):
        store.patch("default", "poet", version=1, if_match=sha256(b""))
    with pytest.raises(PreconditionFailed):
        store.delete("default", "poet", if_match=sha256(b""))
    assert home.files() == files
    publish(store, seed=2, if_match=first.version.sha256)
    publish(store, seed=3, if_match="*")
    assert store.get("default", "poet").version == 3


def test_a_restarted_process_sees_all(store: PrefixStore, home: Home) -> None:
    publish(store, "poet", seed=1)
    publish(store, "poet", seed=2)
    publish_text(store, b"text", seed=3, task_id="clerk")
    store.patch("default", "poet", version=1)
    tasks = store.tasks("default")
    store.close()
    restarted = home.open()
    assert restarted.tasks("default") == tasks
    assert torch.equal(restarted.get("default", "poet").prefix.past_key_values, keys_and_values(1))
    assert restarted.get("default", "clerk").prefix.kind == "text"
    restarted.close()


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "50% off? a #1 näme", backbone=BACKBONE)
    publish(store)
    assert store.get("default", "poet").version == 1
    assert [path.name for path in tmp_path.iterdir()] == ["50% off? a #1 näme"]
    store.close()


def test_under_another_backbone_versions_are_stale_and_a_new_upload_heals(store: PrefixStore, home: Home) -> None:
    publish_text(store, b"text", seed=1)
    store.close()
    other = home.open(OTHER_BACKBONE)
    assert [version.stale for version in other.task("default", "poet").versions] == [True]
    assert other.cached("default", "poet") is None
    with pytest.raises(StaleVersion):
        other.get("default", "poet")
    with pytest.raises(StaleVersion):
        other.patch("default", "poet", version=1)
    assert other.upload_bytes("default", "poet")[0] == b"text"

    foreign = {"kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    native = native_file(2).replace(BACKBONE.fingerprint.encode(), OTHER_BACKBONE.fingerprint.encode())
    assert other.publish("default", "poet", upload=b"text", native=native, **foreign).version.version == 2
    assert other.get("default", "poet").version == 2
    other.close()


@pytest.mark.parametrize("damage", ["a bit flips", "cut short", "gone", "another prefix"])
def test_a_damaged_file_fails_its_own_task_until_it_is_uploaded_again(
    store: PrefixStore, home: Home, damage: str
) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    key = key_of(store)
    if damage == "gone":
        home.remove(key)
    elif damage == "a bit flips":
        flip_a_bit(home, key)
    else:
        home.write(key, {"cut short": home.read(key)[:100], "another prefix": native_file(3)}[damage])
    with pytest.raises(CorruptPrefix):
        store.get("default", "poet")
    with pytest.raises(CorruptPrefix):
        store.upload_bytes("default", "poet")
    assert store.cached("default", "poet") is None
    assert store.get("default", "clerk").version == 1

    assert not publish(store, "poet", seed=1).changed
    assert store.get("default", "poet").version == 1


def test_two_first_uses_load_once(store: PrefixStore) -> None:
    publish(store)
    barrier = Barrier(8)

    def first_use(_: int) -> object:
        barrier.wait(timeout=30)
        return store.get("default", "poet").prefix

    with ThreadPoolExecutor(8) as threads:
        prefixes = set(threads.map(first_use, range(8)))
    assert len(prefixes) == 1
    assert store.stats.loads == 1


def test_memory_is_bounded_and_what_was_pushed_out_is_loaded_again(home: Home) -> None:
    store = home.open(cache_bytes=2 * keys_and_values().nbytes)
    for seed, task_id in enumerate(["a", "b", "c"]):
        publish(store, task_id, seed=seed)
        store.get("default", task_id)
    assert store.cached("default", "a") is None
    assert store.stats.num_prefixes == 2
    assert torch.equal(store.get("default", "a").prefix.past_key_values, keys_and_values(0))
    assert store.stats.evictions == 2
    store.close()


def test_readers_always_get_a_whole_version_while_others_replace_and_delete(store: PrefixStore) -> None:
    """A reader sees one of the two prefixes or no task, never a mixture, a missing file or an older answer."""
    revisions = {sha256(native_file(seed)): seed for seed in (1, 2)}

    def write(seed: int) -> None:
        for _ in range(10):
            publish(store, seed=seed)
            store.delete("default", "poet")

    def read() -> int:
        num_served = 0
        for _ in range(100):
            try:
                prefix = store.get("default", "poet").prefix
            except UnknownTask:
                continue
            num_served += 1
            assert torch.equal(prefix.past_key_values, keys_and_values(revisions[prefix.revision]))
        return num_served

    with ThreadPoolExecutor(3) as threads:
        reading = threads.submit(read)
        writing = threads.submit(write, 1)
        reading.result()
        writing.result()
    publish(store, seed=2)
    assert store.get("default", "poet").prefix.revision == sha256(native_file(2))


class FailingCommit:
    """A database whose commits fail after they happened (or not), as a broken connection makes them."""

    def __init__(self, call: object) -> None:
        self.call = call

    def __call__(self, *arguments: object, **keywords: object) -> None:
        self.call(*arguments, **keywords)
        raise CommitUncertain("the connection broke")


def test_a_commit_that_may_have_happened_keeps_the_files(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as fault:
        fault.setattr(store._registry, "publish", FailingCommit(store._registry.publish))
        with pytest.raises(StoreUnavailable):
            publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    assert len(home.files()) == 2
    assert store.get("default", "poet").version == 1


def test_files_of_a_commit_that_may_have_happened_are_left_to_a_sweep(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a log holds whose sync failed is not seen yet, and may be there after the next start."""
    with monkeypatch.context() as fault:
        fault.setattr(store._registry, "publish", FailingCommit(lambda *arguments, **keywords: None))
        with pytest.raises(StoreUnavailable):
            publish(store, "poet", seed=1)
    (uncertain,) = home.files()
    with pytest.raises(PreconditionFailed):
        publish(store, "clerk", seed=2, if_match="*")
    assert home.files() == {uncertain}, "and of the write that was refused nothing is left"
    publish(store, "clerk", seed=2)
    assert home.files() == {uncertain, key_of(store, "clerk")}
    store.upkeep.sweep(older_than=timedelta(seconds=-60))
    assert home.files() == {key_of(store, "clerk")}


@in_a_directory
def test_a_file_that_may_be_needed_is_no_litter_though_an_earlier_write_of_it_was_refused(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise StoreUnavailable("the disk is gone for a moment")

    with monkeypatch.context() as fault:
        fault.setattr(store._blobs, "delete", unavailable)
        with pytest.raises(PreconditionFailed):
            publish(store, "poet", seed=1, if_match="*")
    with monkeypatch.context() as fault:
        fault.setattr(store._registry, "publish", FailingCommit(lambda *arguments, **keywords: None))
        with pytest.raises(StoreUnavailable):
            publish(store, "poet", seed=1)
    (uncertain,) = home.files()
    publish(store, "clerk", seed=2)
    assert home.files() == {uncertain, key_of(store, "clerk")}


@in_a_directory
def test_a_file_that_cannot_be_removed_keeps_no_other_from_it(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, stuck = store._blobs.delete, set[str]()

    def refusing(tenant: str, name: str) -> None:
        if not stuck or name in stuck:
            stuck.add(name)
            raise StoreUnavailable("input/output error")
        delete(tenant, name)

    monkeypatch.setattr(store._blobs, "delete", refusing)
    for seed in range(8):
        with pytest.raises(PreconditionFailed):
            publish(store, "poet", seed=seed, if_match="*")
    assert len(home.files()) == len(stuck) == 1


@in_a_directory
def test_a_full_registry_keeps_neither_row_nor_file_nor_what_was_served(store: PrefixStore, home: Home) -> None:
    publish(store, seed=1)
    with store._database._engine.connect() as connection:
        num_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={num_pages}")
    with pytest.raises(OutOfSpace):
        fill(store)
    assert len(home.files()) == len(store.tasks("default", limit=1000))
    assert store.get("default", "poet").version == 1


def fill(store: PrefixStore) -> None:
    for i in range(1000):
        publish(store, f"task-{i}", seed=1000 + i)


KILLED_AT = {
    "the file is written": (os, "fsync"),
    "the file is renamed": (Path, "replace"),
    "the folder is synced": (blobs, "fsync_directory"),
    "the transaction begins": (Registry, "publish"),
    "the version is inserted": (registry, "add_version"),
    "memory is told": (ServedPointers, "put"),
}


@in_a_directory
@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_process_killed_when_shows_the_old_version_or_the_new_one_whole(
    store: PrefixStore, tmp_path: Path, moment: str
) -> None:
    publish(store, seed=1)
    store.close()

    def kill_itself(*arguments: object, **keywords: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write(_: object) -> None:
        store = PrefixStore(tmp_path, backbone=BACKBONE)
        setattr(*KILLED_AT[moment], kill_itself)
        publish(store, seed=2)

    assert Child(write).wait() == -signal.SIGKILL

    restarted = PrefixStore(tmp_path, backbone=BACKBONE)
    version = restarted.get("default", "poet").version
    assert version == (2 if moment == "memory is told" else 1)
    assert len(restarted.task("default", "poet").versions) == version
    assert not list(tmp_path.glob("*/*.tmp"))
    assert publish(restarted, seed=2).version.version == 2
    assert restarted.get("default", "poet").version == 2
    restarted.close()


@in_a_directory
def test_ping_tells_when_the_store_is_gone(store: PrefixStore, tmp_path: Path) -> None:
    store.ping()
    store.close()
    (tmp_path / "registry.sqlite3").unlink()
    (tmp_path / "registry.sqlite3").mkdir()
    with pytest.raises(StoreUnavailable):
        store.ping()


def publish_otherwise_compiled(store: PrefixStore, tenant: str, seed: int) -> Published:
    """The text of version 1, compiled to another native file than it was."""
    foreign = {"kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    return store.publish(tenant, "poet", upload=b"one", native=native_file(seed), **foreign)


def test_an_upload_that_fails_at_an_older_versions_file_leaves_the_task_as_it_was(
    store: PrefixStore, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_otherwise_compiled(store, "default", seed=1)
    publish(store, "poet", seed=2)
    publish(store, "poet", seed=3)
    store.patch("default", "poet", traffic={2: 0.5, 3: 0.5})
    before, files = store.task("default", "poet"), home.files()

    def break_down(tenant: str, name: str) -> bytes:
        raise StoreUnavailable("reading: Input/output error")

    with monkeypatch.context() as outage:
        outage.setattr(store._blobs, "read", break_down)
        with pytest.raises(StoreUnavailable):
            publish_otherwise_compiled(store, "default", seed=4)
    assert (store.task("default", "poet"), home.files()) == (before, files)
    assert publish_otherwise_compiled(store, "default", seed=4).version.version == 1


def test_an_upload_past_the_quota_quarantines_nothing(store: PrefixStore, home: Home) -> None:
    num_bytes = 2 * len(native_file(1)) + len(b"one")
    store.tenants.add_tenant(Tenant(name="acme", limits=TenantLimits(max_bytes=num_bytes)))
    publish_otherwise_compiled(store, "acme", seed=1)
    publish(store, "poet", seed=2, tenant="acme")
    before = store.task("acme", "poet")
    damaged = store._names.native_file(before.versions[0]).name
    home.write(next(key for key in home.files() if key.endswith(damaged)), b"damaged")
    with pytest.raises(QuotaExceeded):
        publish_otherwise_compiled(store, "acme", seed=4)
    assert (store.task("acme", "poet"), store.num_quarantines) == (before, 0)
    assert store.get("acme", "poet").version == 2
