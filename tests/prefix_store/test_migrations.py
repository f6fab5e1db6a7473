"""A database gets its tables from the migrations, keeps what it has, and is refused where it is newer than we are."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from prefix_store import migrations
from prefix_store.database import Database, sqlite_url
from prefix_store.errors import SchemaTooNew
from prefix_store.schema import metadata


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
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").all() == [("0001",)]
    again.close()


def test_a_database_of_a_newer_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    database = opened(tmp_path)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = (tmp_path / "registry.sqlite3").read_bytes()
    with pytest.raises(SchemaTooNew, match=r"9999.*up to 0001"):
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
