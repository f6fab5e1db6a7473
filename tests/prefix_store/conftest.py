"""What every test of the store needs: one tiny backbone's numbers, and a store of its own.

A test that takes `home` or `store` runs on a directory, and under the marker `fleet` on a bucket and PostgreSQL too.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from sqlalchemy import create_engine, text

from prefix_store.database import Database
from prefix_store.store import PrefixStore
from tests.prefix_store.homes import DirectoryHome, FleetHome, Home
from tests.prefix_store.servers import PostgreSQL, SeaweedFS, postgresql, seaweedfs

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        with _administering(server.url) as run:
            run("CREATE DATABASE template")
        Database(f"{server.url}template").close()
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with pytest.MonkeyPatch.context() as environment, seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server


@pytest.fixture
def empty_database(postgresql_server: PostgreSQL) -> str:
    """The URL of a database without tables."""
    return _new_database(postgresql_server, "CREATE DATABASE {}")


@pytest.fixture(scope="session")
def new_fleet(postgresql_server: PostgreSQL, seaweedfs_server: SeaweedFS) -> Callable[[], FleetHome]:
    """Makes an empty place for a store that several processes share."""

    def make() -> FleetHome:
        registry = _new_database(postgresql_server, "CREATE DATABASE {} TEMPLATE template")
        return FleetHome(f"s3://tests/{secrets.token_hex(8)}", registry)

    return make


@pytest.fixture
def ascii_database(postgresql_server: PostgreSQL) -> str:
    """The URL of a database that takes bytes for what they are, as `initdb` makes it where no locale is set."""
    return _new_database(
        postgresql_server, "CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
    )


@pytest.fixture
def fleet(new_fleet: Callable[[], FleetHome]) -> FleetHome:
    return new_fleet()


@pytest.fixture(params=["directory", pytest.param("fleet", marks=pytest.mark.fleet)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return DirectoryHome(tmp_path) if request.param == "directory" else request.getfixturevalue("fleet")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.fleet)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a registry's database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite3'}"
    server = request.getfixturevalue("postgresql_server")
    return _new_database(server, "CREATE DATABASE {} TEMPLATE template")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def store(home: Home) -> Iterator[PrefixStore]:
    opened = home.open()
    yield opened
    opened.close()


@contextmanager
def _administering(url: str) -> Iterator[Callable[[str], None]]:
    engine = create_engine(f"{url}postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield lambda statement: connection.execute(text(statement)) and None
    engine.dispose()


def _new_database(server: PostgreSQL, statement: str) -> str:
    name = f"t{secrets.token_hex(8)}"
    with _administering(server.url) as run:
        run(statement.format(name))
    return f"{server.url}{name}"
