"""A database gets its tables from the migrations, keeps what it has, and is refused where it is newer than we are."""

import hashlib
import json
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from prefix_store import migrations
from prefix_store.database import Database, sqlite_url
from prefix_store.errors import SchemaTooNew
from prefix_store.registry import Registry
from prefix_store.schema import metadata
from tests.prefix_store.test_registry import an_upload


def opened(tmp_path: Path) -> Database:
    return Database(sqlite_url(tmp_path / "registry.sqlite3"))


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = opened(tmp_path)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert {index["name"] for index in inspect(connection).get_indexes("tasks")} == {"public_tasks"}
    database.close()


def test_a_database_that_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    again = opened(tmp_path)
    with again.reading() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").all() == [("0003",)]
    again.close()


def test_rows_of_the_first_schema_are_sound_in_the_newest_and_seals_without_traffic_are_those_of_the_first(
    tmp_path: Path,
) -> None:
    """So that in a fleet servers of both releases can read what either has written."""
    database = opened(tmp_path)
    registry = Registry(database, "ab" * 32)
    registry.publish("default", "poet", an_upload())
    with database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE identity")
        connection.exec_driver_sql("ALTER TABLE tasks DROP COLUMN traffic")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
        old = connection.exec_driver_sql("SELECT * FROM tasks").mappings().one()
        covered = [value for name, value in old.items() if name != "checksum"]
        covered[5] = bool(covered[5])  # public
        assert old["checksum"] == hashlib.sha256(json.dumps(["tasks", *covered]).encode()).hexdigest()
    database.close()
    again = opened(tmp_path)
    assert Registry(again, "ab" * 32).task("default", "poet").traffic == {}
    again.close()


def test_a_database_of_a_newer_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    database = opened(tmp_path)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = (tmp_path / "registry.sqlite3").read_bytes()
    with pytest.raises(SchemaTooNew, match=r"9999.*up to 0003"):
        opened(tmp_path)
    assert (tmp_path / "registry.sqlite3").read_bytes() == before


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade_and_fail(connection: object) -> None:
        migrations.upgrade(connection)
        raise RuntimeError("killed")

    with monkeypatch.context() as fault:
        fault.setattr("prefix_store.database.upgrade", upgrade_and_fail)
        with pytest.raises(RuntimeError):
            opened(tmp_path)
    database = opened(tmp_path)
    with database.reading() as connection:
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    database.close()
