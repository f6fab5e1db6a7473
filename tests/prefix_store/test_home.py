"""Where a store can be kept, and where it refuses to be."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefix_store.bucket import BucketBlobs
from prefix_store.database import Database
from prefix_store.errors import StoreUnavailable, UnsuitablePlace
from prefix_store.home import place_of
from prefix_store.store import PrefixStore
from tests.prefix_store.homes import FleetHome, in_a_directory
from tests.prefix_store.support import BACKBONE, publish


@pytest.mark.parametrize("text", ["store", "/var/lib/store", "a b", "C:store"])
def test_a_path_is_a_directory(text: str) -> None:
    assert place_of(text) == Path(text)
    assert place_of(Path(text)) == Path(text)


@pytest.mark.parametrize(
    ("place", "registry", "what"),
    [
        ("s3://bucket/path", None, "--registry"),
        ("s3://bucket/path", "sqlite:///registry.sqlite3", "--registry"),
        ("file:///tmp/store", "postgresql+psycopg://host/database", "s3://"),
        ("memory:///", "postgresql+psycopg://host/database", "s3://"),
        ("s3://", "postgresql+psycopg://host/database", "URL"),
    ],
)
def test_what_many_cannot_share_safely_is_refused(place: str, registry: str | None, what: str) -> None:
    with pytest.raises(UnsuitablePlace, match=what):
        PrefixStore(place, backbone=BACKBONE, registry_url=registry)


UNQUOTED = "postgresql+psycopg://user:a@b:secret@host/database"  # what is behind the colon is no port


@pytest.mark.parametrize(
    "registry", ["nonsense", "oracle://host/database", "postgresql+nobody://user:secret@host/d", UNQUOTED]
)
def test_a_registry_that_is_no_database_of_ours_is_refused_and_no_password_repeated(registry: str) -> None:
    with pytest.raises(UnsuitablePlace, match="postgresql") as refused:
        Database(registry)
    assert "secret" not in str(refused.value)


def test_a_directory_has_no_registry_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UnsuitablePlace, match="itself"):
        PrefixStore(tmp_path, backbone=BACKBONE, registry_url="postgresql+psycopg://host/database")
    assert list(tmp_path.iterdir()) == []


@in_a_directory
def test_a_directory_that_has_lost_its_registry_is_not_taken_for_an_empty_one(
    store: PrefixStore, tmp_path: Path
) -> None:
    """It would be served without a key, and swept."""
    publish(store)
    store.close()
    (tmp_path / "registry.sqlite3").unlink()
    with pytest.raises(UnsuitablePlace, match="restore a backup"):
        PrefixStore(tmp_path, backbone=BACKBONE)
    assert not (tmp_path / "registry.sqlite3").exists()


@pytest.mark.fleet
def test_a_bucket_is_opened_with_its_own_registry_alone(new_fleet: Callable[[], FleetHome]) -> None:
    """To another one every file would be missing, and needless."""
    fleet, another = new_fleet(), new_fleet()
    fleet.open().close()
    mixed_up = replace(fleet, registry=another.registry)
    with pytest.raises(UnsuitablePlace, match="another registry"):
        mixed_up.open()
    fleet.open().close()
    another.open().close()


class Forgetful(BaseHTTPRequestHandler):
    """An object store of the kind that takes every PUT, whatever it was told of what must not be there."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("etag", '"0"')
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b"<DeleteResult><Deleted><Key>probe</Key></Deleted></DeleteResult>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forgetful) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.usefixtures("forgetful")
def test_a_bucket_that_lets_a_file_be_created_twice_is_refused() -> None:
    with pytest.raises(UnsuitablePlace, match="If-None-Match"):
        BucketBlobs("s3://bucket/path")


def test_a_bucket_that_cannot_be_reached_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with pytest.raises(StoreUnavailable, match="opening s3://bucket"):
        BucketBlobs("s3://bucket/path")
