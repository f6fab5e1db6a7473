"""The registry in a real PostgreSQL: its tables, how processes that start together make them, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from prefix_store.database import Database
from prefix_store.errors import OutOfSpace, SchemaTooNew, StoreUnavailable
from prefix_store.principals import Principals
from prefix_store.schema import metadata
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import Tenant
from tests.prefix_store.homes import FleetHome
from tests.prefix_store.servers import PostgreSQL

pytestmark = pytest.mark.fleet


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(empty_database: str) -> None:
    database = Database(empty_database)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_processes_that_start_at_the_same_time_migrate_once(empty_database: str) -> None:
    start = f"from prefix_store.database import Database; Database({empty_database!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", start]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_texts_come_back_from_a_database_without_an_encoding(ascii_database: str) -> None:
    registry = Database(ascii_database)
    tenants = TenantRegistry(registry, principals=Principals(max_outage=0.0))
    tenants.add_tenant(Tenant(name="acme"))
    assert [tenant.name for tenant in tenants.tenants()] == ["acme"]
    registry.close()


def test_a_database_of_a_newer_release_is_refused(empty_database: str) -> None:
    database = Database(empty_database)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(SchemaTooNew):
        Database(empty_database)


def test_where_no_new_connection_can_be_had_those_that_there_are_serve_on(
    empty_database: str, postgresql_server: PostgreSQL
) -> None:
    database = Database(f"{empty_database}?connect_timeout=1")
    with postgresql_server.closed():
        with database.reading():  # takes the one that there is
            for _ in range(2):  # the first waits for it, the second is told at once
                with pytest.raises(StoreUnavailable, match=r"timeout|a moment ago"), database.reading():
                    pass
        database.ping()
    database.close()


def test_a_full_disk_is_told_as_such(empty_database: str) -> None:
    database = Database(empty_database)
    full = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$"
    with pytest.raises(OutOfSpace), database.writing() as connection:
        connection.exec_driver_sql(full)
    database.close()


def test_a_backup_is_left_to_the_own_tools_of_bucket_and_database(fleet: FleetHome, tmp_path: Path) -> None:
    store = fleet.open()
    with pytest.raises(StoreUnavailable, match="own tools"):
        store.upkeep.backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    store.close()
