"""Where a store is kept: a directory that one process owns, or a bucket and a database that any number of them share.

Knows which kinds of files, registry and names belong together. Knows nothing of tasks.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, select

from prefix_store.blobs import Blobs, DirectoryBlobs
from prefix_store.bucket import BucketBlobs
from prefix_store.database import Database, lock_name, sqlite_url
from prefix_store.errors import UnsuitablePlace, shown
from prefix_store.files import FileNames, is_file_name
from prefix_store.lock import DirectoryLock
from prefix_store.schema import identity

Place = Path | str  # a directory, or a bucket's URL
REGISTRY = "registry.sqlite3"
BUCKETS = {"s3", "gs", "az"}


@dataclass(frozen=True, slots=True)
class Home:
    """`lock` is held by the one process that owns a directory; who shares a bucket has none."""

    blobs: Blobs
    database: Database
    names: FileNames
    lock: DirectoryLock | None

    @property
    def is_shared(self) -> bool:
        return self.lock is None

    def close(self) -> None:
        self.database.close()
        if self.lock is not None:
            self.lock.give_back()


def place_of(text: str | Path) -> Place:
    """A bucket's URL as it is, anything else as a directory's path."""
    return text if isinstance(text, str) and "://" in text else Path(text)


def open_home(place: Place, registry_url: str | None) -> Home:
    """Raises `StoreInUse`, `UnsuitablePlace`, `SchemaTooNew`, `StoreUnavailable`, `OutOfSpace`."""
    if isinstance(place, Path):
        if registry_url is not None:
            # Two servers with a directory each would share the records and not the files.
            raise UnsuitablePlace(
                f"the directory {place} holds its registry itself: no --registry, or a bucket as --store"
            )
        return _open_directory(place)
    if place.partition("://")[0] not in BUCKETS:
        raise UnsuitablePlace(
            f"'{shown(place)}' is no place for a store: expected a directory, or s3://, gs:// or az://"
        )
    if registry_url is None or not registry_url.startswith("postgresql"):
        raise UnsuitablePlace(
            f"{place} may have several servers, so its registry has to be a database that they share: "
            "--registry postgresql+psycopg://…"
        )
    return _open_bucket(place, registry_url)


def _open_bucket(url: str, registry_url: str) -> Home:
    blobs, database = BucketBlobs(url), Database(registry_url)
    try:
        blobs.claim(_identity_of(database))
    except BaseException:
        database.close()
        raise
    return Home(blobs, database, FileNames(per_upload=True), lock=None)


def _identity_of(database: Database) -> str:
    with database.writing() as connection:
        lock_name(connection, "identity")
        known: str | None = connection.scalar(select(identity.c.id))
        if known is not None:
            return known
        made = secrets.token_hex(16)
        connection.execute(insert(identity).values(id=made))
        return made


def _open_directory(directory: Path) -> Home:
    lock = DirectoryLock(directory)
    try:
        registry = directory / REGISTRY
        if not registry.exists() and any(is_file_name(path.name) for path in directory.glob("*/*")):
            # An empty one in its place would need none of these files, and know no key.
            raise UnsuitablePlace(f"{directory} has prefixes and no {REGISTRY}: restore a backup into a new directory")
        blobs = DirectoryBlobs(directory)
        database = Database(sqlite_url(registry))
    except BaseException:
        lock.give_back()
        raise
    return Home(blobs, database, FileNames(per_upload=False), lock)
