"""The same store with its registry in a real PostgreSQL, started on a port of its own; skipped where there is none."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from prefix_store.database import Database
from prefix_store.errors import CorruptRecord, QuotaExceeded, SchemaTooNew, StoreUnavailable, Unauthorized, UnknownTask
from prefix_store.schema import metadata
from prefix_store.store import PrefixStore
from prefix_store.tasks import TaskConfig
from prefix_store.tenants import Scope, Tenant, TenantLimits
from prefix_store.usage import Usage
from tests.prefix_store.support import BACKBONE, publish

pytest.importorskip("psycopg", reason="needs psycopg, the driver of PostgreSQL")


def programs() -> Path | None:
    """Where `initdb` is: on the path, or where Debian puts it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binaries = programs()
    if binaries is None:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    directory = tmp_path_factory.mktemp("postgresql")
    user: dict[str, object] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        for path in (directory, directory.parent, directory.parent.parent):
            path.chmod(0o755)
        os.chown(directory, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    place = {"cwd": directory, "stdout": subprocess.DEVNULL, **user}
    data = directory / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C"], check=True, **place
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    subprocess.run([binaries / "pg_ctl", "-D", data, "-w", "-o", options, "start"], check=True, **place)
    yield f"postgresql+psycopg://tests@127.0.0.1:{port}/"
    subprocess.run([binaries / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"], check=True, **place)


@pytest.fixture
def url(server_url: str, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"t{abs(hash(request.node.name))}"
    engine = create_engine(f"{server_url}postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server_url}{name}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[PrefixStore]:
    opened = PrefixStore(tmp_path / "store", backbone=BACKBONE, registry_url=url)
    yield opened
    opened.close()


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(url: str) -> None:
    database = Database(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_processes_that_start_at_the_same_time_migrate_once(url: str) -> None:
    start = f"from prefix_store.database import Database; Database({url!r}).close()"
    processes = [subprocess.Popen([sys.executable, "-c", start]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_a_database_of_a_newer_release_is_refused(url: str) -> None:
    database = Database(url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(SchemaTooNew):
        Database(url)


def test_tasks_are_published_replaced_rolled_back_and_deleted(store: PrefixStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    store.patch("default", "poet", change_config=lambda _: TaskConfig(parameters={"temperature": 0.5, "stop": ["\n"]}))
    store.patch("default", "poet", version=1)
    served = store.get("default", "poet")
    assert (served.version, served.config.parameters["temperature"]) == (1, 0.5)
    assert [len(task.versions) for task in store.tasks("default")] == [2]
    assert store.upkeep.verify() == []
    store.delete("default", "poet")
    with pytest.raises(UnknownTask):
        store.get("default", "poet")


def test_a_public_task_is_everybodys(store: PrefixStore) -> None:
    publish(store, tenant="acme")
    store.patch("acme", "poet", public=True)
    assert store.get("zeta", "poet").tenant == "acme"
    assert [task.tenant for task in store.tasks("zeta")] == ["acme"]


def test_two_stores_do_not_pass_a_quota_together(store: PrefixStore, url: str, tmp_path: Path) -> None:
    store.tenants.add_tenant(Tenant(name="acme", limits=TenantLimits(max_tasks=3)))
    other = PrefixStore(tmp_path / "other", backbone=BACKBONE, registry_url=url)

    def upload(number: int) -> bool:
        try:
            publish((store, other)[number % 2], f"task-{number}", tenant="acme", seed=number)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(upload, range(12))) == 3
    other.close()


def test_keys_prove_their_tenant_whatever_is_sent(store: PrefixStore) -> None:
    store.tenants.add_tenant(Tenant(name="acme"))
    key, secret = store.tenants.create_key("acme", {Scope.GENERATE})
    assert store.tenants.authenticate(secret).tenant == "acme"
    store.tenants.flush_last_used()
    assert store.tenants.keys("acme")[0].last_used_at is not None
    store.tenants.revoke_key(key.key_id)
    for refused in (secret, "", "\0", "\ud800", "pp_zzzzzzzz_" + "0" * 64):
        with pytest.raises(Unauthorized):
            store.tenants.authenticate(refused)


def test_usage_counts_once(store: PrefixStore) -> None:
    for _ in range(2):
        store.usage.add("acme", "poet", Usage(requests=1, prompt_tokens=2, generated_tokens=3, seconds=0.5))
        store.usage.flush()
    assert store.usage.by_task("acme")["poet"].generated_tokens == 6


def test_a_damaged_record_fails_its_own_task(store: PrefixStore) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE versions SET num_virtual_tokens = 9 WHERE task_id = 'poet'")
    with pytest.raises(CorruptRecord):
        store.task("default", "poet")
    assert store.get("default", "clerk").version == 1
    assert len(store.upkeep.scan()) == 1


def test_a_backup_is_left_to_the_databases_own_tools(store: PrefixStore, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="own tools"):
        store.upkeep.backup(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
