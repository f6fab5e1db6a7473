"""Which files an upload has in its tenant's folder, and what has to be in them. Knows names and hashes, no disk."""

from collections.abc import Mapping
from dataclasses import dataclass

from prefix_store.tasks import Upload


@dataclass(frozen=True, slots=True)
class StoredFile:
    name: str
    sha256: str
    num_bytes: int


def native_file(facts: Upload) -> StoredFile:
    """The one that is served."""
    return StoredFile(f"{facts.native_sha256}.safetensors", facts.native_sha256, facts.num_native_bytes)


def upload_file(facts: Upload) -> StoredFile:
    """What was uploaded, byte for byte: the native file itself where that was it."""
    if facts.sha256 == facts.native_sha256:
        return native_file(facts)
    return StoredFile(f"{facts.sha256}.upload", facts.sha256, facts.num_bytes)


def files_of(facts: Upload) -> Mapping[str, StoredFile]:
    return {file.name: file for file in (upload_file(facts), native_file(facts))}


def names_of(sha256: str) -> tuple[str, ...]:
    """Every name that a file of this hash can have."""
    return (f"{sha256}.safetensors", f"{sha256}.upload")
