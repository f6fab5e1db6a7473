"""Files in a bucket of an object store (S3, Google, Azure), one folder per tenant, which any number of processes share.

Knows names, bytes and conditional writes. Knows nothing of prefixes, tasks, versions or hashes.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from prefix_store.disk import os_errors, write_durably
from prefix_store.errors import CorruptPrefix, NameTaken, StoreUnavailable, UnsuitablePlace
from prefix_store.names import file_key, tenant_folder

try:
    from obstore.exceptions import AlreadyExistsError, BaseError
    from obstore.store import ObjectStore, from_url
except ModuleNotFoundError:
    IS_INSTALLED = False
else:
    IS_INSTALLED = True

_PROBES = "~probe"  # a folder that no tenant has
_OWNER = "~store/registry"


class BucketBlobs:
    """`<url>/<tenant>/<name>`; `url` is `s3://bucket/path`, `gs://…` or `az://…`, and the environment has the rest.

    Thread-safe, and so are processes. Errors: `StoreUnavailable`, and `CorruptPrefix` for a missing file. Opening
    raises `UnsuitablePlace` also where the bucket does not honour conditional writes.
    """

    def __init__(self, url: str) -> None:
        if not IS_INSTALLED:
            raise UnsuitablePlace("a store in a bucket needs obstore: pip install 'polyprefix[cloud]'")
        self._url = url
        self._bucket = _opened(url, seconds=60, max_retries=3)
        self._pinged = _opened(url, seconds=2, max_retries=0)
        self._probe()

    def write(self, tenant: str, name: str, body: bytes) -> None:
        """A new file, whole and durable when it returns. Raises `NameTaken` where there is one of that name."""
        with _bucket_errors(f"writing {name}"):
            try:
                self._bucket.put(file_key(tenant, name), body, mode="create")
            except AlreadyExistsError as error:
                raise NameTaken(name) from error

    def repair(self, tenant: str, name: str, body: bytes) -> None:
        """Write a file anew, whatever is there."""
        with _bucket_errors(f"repairing {name}"):
            self._bucket.put(file_key(tenant, name), body, use_multipart=False)

    def read(self, tenant: str, name: str) -> bytes:
        with _bucket_errors(f"reading {name}"):
            try:
                return bytes(self._bucket.get(file_key(tenant, name)).bytes())
            except FileNotFoundError as error:
                self.ping()  # a bucket that is gone says the same of all its files
                raise CorruptPrefix(name, "is missing") from error

    def delete(self, tenant: str, name: str) -> None:
        """A file that is not there is as good as deleted."""
        with _bucket_errors(f"deleting {name}"):
            self._delete(file_key(tenant, name))

    def sizes(self, tenant: str) -> dict[str, int]:
        """The tenant's files and their bytes, without reading them."""
        with _bucket_errors(f"listing the files of {tenant!r}"):
            found = self._bucket.list(tenant_folder(tenant))
            return {each["path"].rpartition("/")[2]: each["size"] for page in found for each in page}

    def copy(self, tenant: str, name: str, path: Path) -> None:
        body = self.read(tenant, name)
        with os_errors(f"writing {path}"):
            write_durably(path, body)

    def sweep(self, is_litter: Callable[[str], bool], written_before: datetime) -> int:
        """Remove files, of any tenant, whose keys are litter and which are older; returns their bytes."""
        with _bucket_errors(f"sweeping {self._url}"):
            found = [each for page in self._bucket.list() for each in page if each["path"].count("/") == 1]
            litter = [each for each in found if is_litter(each["path"]) and each["last_modified"] < written_before]
            for each in litter:
                self._delete(each["path"])
            return sum(each["size"] for each in litter)

    def claim(self, registry: str) -> None:
        """Note whose files these are, or raise `UnsuitablePlace` where they are another registry's.

        To that one every file here would be missing, and to a sweep by it none would be needed.
        """
        with _bucket_errors(f"opening {self._url}"):
            try:
                self._bucket.put(_OWNER, registry.encode(), mode="create")
            except AlreadyExistsError:
                if bytes(self._bucket.get(_OWNER).bytes()) != registry.encode():
                    raise UnsuitablePlace(
                        f"what is in {self._url} belongs to another registry than the one that --registry names; name "
                        f"that one, or a path of the bucket that is empty ({_OWNER} there says whose it is)"
                    ) from None

    def ping(self) -> None:
        """Raises `StoreUnavailable` within a few seconds, so that who asks for readiness gets an answer."""
        with _bucket_errors(f"looking at {self._url}"):
            next(iter(self._pinged.list(_PROBES, chunk_size=1)), None)

    def _delete(self, key: str) -> None:
        try:
            self._bucket.delete(key)
        except FileNotFoundError:
            return

    def _probe(self) -> None:
        """Raise `UnsuitablePlace` unless the second to create a file is refused, as `write` relies on."""
        key = f"{_PROBES}/{secrets.token_hex(8)}"
        with _bucket_errors(f"opening {self._url}"):
            self._bucket.put(key, b"", mode="create")
            try:
                self._bucket.put(key, b"", mode="create")
            except AlreadyExistsError:
                return
            finally:
                self._delete(key)
        raise UnsuitablePlace(
            f"{self._url} let a file be created twice, so writers could undo each other: use an object store that "
            "honours If-None-Match, or a directory"
        )


def _opened(url: str, seconds: int, max_retries: int) -> "ObjectStore":
    try:
        return from_url(
            url,
            client_options={
                "connect_timeout": timedelta(seconds=2),
                "timeout": timedelta(seconds=seconds),
                "allow_http": True,  # for who sets an endpoint that begins with http://
            },
            retry_config={"max_retries": max_retries, "retry_timeout": timedelta(seconds=seconds)},
        )
    except (BaseError, ValueError) as error:
        raise UnsuitablePlace(f"'{url}' is no bucket's URL: {_first_line(error)}") from error


@contextmanager
def _bucket_errors(action: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"{action}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
