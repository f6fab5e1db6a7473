"""Rows and transactions, and what a database's own failures become."""

import errno
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

import prefix_store.database
from prefix_store.database import Database
from prefix_store.errors import OutOfSpace, PreconditionFailed, StoreUnavailable, UnknownTask, UnknownVersion
from prefix_store.registry import Registry
from prefix_store.tasks import TaskConfig, Upload
from tests.prefix_store.homes import in_sqlite

NOW = datetime(2026, 11, 24, 12, 30, 15, 123456, tzinfo=UTC)


def test_what_a_url_sets_to_nothing_reaches_the_driver() -> None:
    """As a pooler needs it that takes no options; SQLAlchemy would leave it out, and ours would come in its place."""
    url = "postgresql+psycopg://user@host/database?options=&connect_timeout=7"
    engine = prefix_store.database._engine(url)
    assert (engine.url.query["options"], engine.url.query["connect_timeout"]) == ("", "7")


@pytest.fixture
def registry(database: Database) -> Registry:
    return Registry(database, fingerprint="ab" * 32)


def an_upload(sha256: str = "11" * 32, backbone: str = "ab" * 32) -> Upload:
    return Upload(
        sha256=sha256,
        native_sha256="22" * 32,
        kind="text",
        num_virtual_tokens=3,
        num_bytes=100,
        num_native_bytes=80,
        backbone=backbone,
        backbone_checked=True,
        created_at=NOW,
    )


def test_what_was_published_is_read_as_it_was_written(registry: Registry) -> None:
    published = registry.publish("default", "poet", an_upload())
    task = registry.task("default", "poet")
    assert task.versions == (published.version,)
    assert published.version.version == task.served_version == 1
    assert published.version.created_at == NOW
    assert task.versions[0].created_at.tzinfo is UTC
    assert task.config == TaskConfig()
    assert not published.version.stale


def test_a_config_is_kept_as_json(registry: Registry) -> None:
    registry.publish("default", "poet", an_upload())
    config = TaskConfig("über", "{inputs} =>", {"temperature": 0.5, "stop": ["\n"], "seed": None})
    assert registry.patch("default", "poet", change_config=lambda _: config).config == config
    assert registry.publish("default", "poet", an_upload("33" * 32)).config == config
    assert registry.served("default", "poet")[2] == config


def test_versions_count_up_per_tenant_and_task(registry: Registry) -> None:
    for tenant, task_id in [("acme", "poet"), ("acme", "clerk"), ("zeta", "poet")]:
        numbers = [registry.publish(tenant, task_id, an_upload(f"{i}" * 64)).version.version for i in range(3)]
        assert numbers == [1, 2, 3]


def test_pages_follow_each_other_in_the_order_of_ids(registry: Registry) -> None:
    for task_id in ["b", "B", "a", "c", "a.1", "10", "9"]:
        registry.publish("default", task_id, an_upload())
    registry.publish("other", "a2", an_upload())
    pages, after = [], None
    while page := registry.tasks("default", 3, after):
        pages.append([task.task_id for task in page])
        after = page[-1].task_id
    assert pages == [["10", "9", "B"], ["a", "a.1", "b"], ["c"]]


@pytest.mark.parametrize("task_id", ["nobody", "", "\ud800", "a\0b", "x" * 1000])
def test_an_unknown_task_is_unknown_however_it_is_spelled(registry: Registry, task_id: str) -> None:
    for ask in (registry.task, registry.served):
        with pytest.raises(UnknownTask):
            ask("default", task_id)


@pytest.mark.parametrize("version", [0, -1, 2, 10**30])
def test_an_unknown_version_is_unknown_however_large(registry: Registry, version: int) -> None:
    registry.publish("default", "poet", an_upload())
    with pytest.raises(UnknownVersion):
        registry.version("default", "poet", version)


def test_a_refused_transaction_changes_nothing(registry: Registry) -> None:
    registry.publish("default", "poet", an_upload())
    before = registry.task("default", "poet")
    with pytest.raises(PreconditionFailed):
        registry.publish("default", "poet", an_upload("33" * 32), if_match="44" * 32)
    assert registry.task("default", "poet") == before


def test_writers_at_the_same_time_get_numbers_of_their_own(registry: Registry) -> None:
    with ThreadPoolExecutor(4) as threads:
        uploads = [an_upload(f"{i:064x}") for i in range(12)]
        published = threads.map(lambda upload: registry.publish("default", "poet", upload), uploads)
        assert sorted(each.version.version for each in published) == list(range(1, 13))


@in_sqlite
def test_a_commit_reaches_the_disk_before_it_is_answered_for(registry: Registry, url: str) -> None:
    with registry._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@in_sqlite
def test_the_log_has_its_place_in_the_folder_before_anything_is_acknowledged(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the folder cannot be synced")

    with monkeypatch.context() as fault:
        fault.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnavailable, match="cannot be synced"):
            Database(url)
    database = Database(url)
    database._engine.dispose()
    assert (tmp_path / "registry.sqlite3-wal").exists()
    database.close()


@in_sqlite
def test_a_connection_that_could_only_be_opened_for_reading_is_not_used_again(
    registry: Registry, tmp_path: Path
) -> None:
    """SQLite falls back to that where opening for writing fails, for want of a descriptor, say."""
    read_only = sqlite3.connect(f"file:{tmp_path / 'registry.sqlite3'}?mode=ro", uri=True)
    read_only.isolation_level = None
    with registry._database._engine.connect() as connection:
        pooled = connection.connection._connection_record
        pooled.dbapi_connection = read_only
    with pytest.raises(StoreUnavailable, match="readonly"):
        registry.publish("default", "poet", an_upload())
    assert registry.publish("default", "poet", an_upload()).created_task


@in_sqlite
def test_a_full_disk_is_out_of_space_and_nothing_was_kept(registry: Registry) -> None:
    with registry._database._engine.connect() as connection:
        num_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={num_pages}")
    with pytest.raises(OutOfSpace):
        fill(registry)
    tasks = registry.tasks("default", 1000, None)
    assert [len(task.versions) for task in tasks] == [1] * len(tasks)


def fill(registry: Registry) -> None:
    for i in range(1000):
        registry.publish("default", f"task-{i}", an_upload())


@in_sqlite
def test_a_long_transaction_of_another_process_is_waited_for_and_then_refused(
    registry: Registry, url: str, tmp_path: Path
) -> None:
    with registry._database._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")  # the pool hands this same connection out again
    other = sqlite3.connect(tmp_path / "registry.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        registry.publish("default", "poet", an_upload())
    other.close()
    assert registry.publish("default", "poet", an_upload()).created_task


@in_sqlite
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, url: str) -> None:
    (tmp_path / "registry.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Database(url)
