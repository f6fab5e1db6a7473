"""Which files an upload has in its tenant's folder, and what has to be in them. Knows names and hashes, no disk."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from prefix_store.tasks import Upload

_NAME = re.compile(r"[0-9a-f]{64}(-[0-9]{8}T[0-9]{12})?\.(safetensors|upload)")


def is_file_name(name: str) -> bool:
    """Whether `FileNames` gives such names: of all others in the store's place, none is the store's."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`uploaded_at` is the moment of the only upload that has it; None where all uploads of these bytes share it."""

    name: str
    sha256: str
    num_bytes: int
    uploaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FileNames:
    """By hash alone, so that the same bytes are kept once; or `per_upload`.

    Where several processes write, none can know whether another is about to need a file. So there each upload has files
    of its own, under names that are never used again, and may remove them when it is forgotten.
    """

    per_upload: bool

    def native_file(self, facts: Upload) -> StoredFile:
        """The one that is served."""
        return self._file(facts, facts.native_sha256, facts.num_native_bytes, "safetensors")

    def upload_file(self, facts: Upload) -> StoredFile:
        """What was uploaded, byte for byte: the native file itself where that was it."""
        if facts.sha256 == facts.native_sha256:
            return self.native_file(facts)
        return self._file(facts, facts.sha256, facts.num_bytes, "upload")

    def files_of(self, facts: Upload) -> tuple[StoredFile, ...]:
        return tuple(dict.fromkeys((self.upload_file(facts), self.native_file(facts))))

    def _file(self, facts: Upload, sha256: str, num_bytes: int, ending: str) -> StoredFile:
        if not self.per_upload:
            return StoredFile(f"{sha256}.{ending}", sha256, num_bytes)
        moment = facts.created_at.astimezone(UTC)
        return StoredFile(f"{sha256}-{moment:%Y%m%dT%H%M%S%f}.{ending}", sha256, num_bytes, moment)
