"""Who changed what and when, one JSON object a line, in a file that only ever grows; for a bucket in the server's log.

Knows principals and names. Is never given a prompt, a key's secret or a file's content.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from structlog.typing import FilteringBoundLogger

from prefix_store.home import Place
from prefix_store.tenants import Principal

NAME = "audit.jsonl"


class AuditLog:
    """Thread-safe. Writes to the disk, so an event loop calls `record` in a thread."""

    def __init__(self, path: Path | None, log: FilteringBoundLogger) -> None:
        self._path = path
        self._log = log
        self._lock = Lock()

    @classmethod
    def of(cls, place: Place, log: FilteringBoundLogger) -> "AuditLog":
        """The log of the store in this place. A bucket's objects cannot grow, so there each server's own log has it."""
        return cls(place / NAME if isinstance(place, Path) else None, log)

    def record(self, principal: Principal, request_id: str, action: str, **facts: object) -> None:
        """Add a line. What was done is done: where the line cannot be written, the server's own log has it."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        who = {"tenant": principal.tenant, "key_id": principal.key_id}
        line = {"time": moment, **who, "request_id": request_id, "action": action, **facts}
        if self._path is None:
            self._log.info("audit", line=line)
            return
        try:
            with self._lock, self._path.open("ab+") as file:
                file.write(_end_of_half_a_line(file) + json.dumps(line, default=str).encode() + b"\n")
        except OSError as error:
            self._log.error("audit_not_written", reason=str(error), line=line)


def _end_of_half_a_line(file: BinaryIO) -> bytes:
    """What a full disk has left without its end would spoil the next line too."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"
