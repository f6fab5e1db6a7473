"""Where a test keeps its store: a directory, or a bucket and a database; opened, looked into and damaged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from obstore.store import ObjectStore, from_url

from prefix_store.names import file_key
from prefix_store.prefix import BackboneSpec
from prefix_store.store import PrefixStore
from tests.prefix_store.support import BACKBONE


class Home(Protocol):
    def open(self, backbone: BackboneSpec = BACKBONE, cache_bytes: int = 1 << 30) -> PrefixStore: ...

    def files(self) -> set[str]:
        """The keys of all tenants' files, `tenant/name`."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, body: bytes) -> None: ...

    def remove(self, key: str) -> None: ...


@dataclass(frozen=True)
class DirectoryHome:
    path: Path

    def open(self, backbone: BackboneSpec = BACKBONE, cache_bytes: int = 1 << 30) -> PrefixStore:
        return PrefixStore(self.path, backbone=backbone, cache_bytes=cache_bytes)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.glob("*/*")}

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def write(self, key: str, body: bytes) -> None:
        (self.path / key).parent.mkdir(exist_ok=True)
        (self.path / key).write_bytes(body)

    def remove(self, key: str) -> None:
        (self.path / key).unlink()


@dataclass(frozen=True)
class FleetHome:
    """Any number of stores can be open at once."""

    bucket: str
    registry: str

    def open(self, backbone: BackboneSpec = BACKBONE, cache_bytes: int = 1 << 30) -> PrefixStore:
        return PrefixStore(self.bucket, backbone=backbone, cache_bytes=cache_bytes, registry_url=self.registry)

    def files(self) -> set[str]:
        found = {each["path"] for page in self._objects().list() for each in page}
        return {key for key in found if not key.startswith("~store/")}

    def read(self, key: str) -> bytes:
        return bytes(self._objects().get(key).bytes())

    def write(self, key: str, body: bytes) -> None:
        self._objects().put(key, body)

    def remove(self, key: str) -> None:
        self._objects().delete(key)

    def _objects(self) -> ObjectStore:
        return from_url(self.bucket, client_options={"allow_http": True})


def key_of(store: PrefixStore, task_id: str = "poet", tenant: str = "default") -> str:
    """Of the file that the task is served from."""
    return file_key(tenant, store._names.native_file(store.task(tenant, task_id).served).name)


def flip_a_bit(home: Home, key: str) -> None:
    body = bytearray(home.read(key))
    body[-1] ^= 1
    home.write(key, bytes(body))


in_a_directory = pytest.mark.parametrize("home", ["directory"], indirect=True)
in_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
