"""What keys proved a moment ago, remembered in memory so that a request needs no SQL.

Knows hashes of keys and a clock. Knows nothing of tables or of what makes a key good.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from prefix_store.tenants import Principal

MAX_SECONDS = 2.0  # within which a key that another process revoked is refused here
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Remembered:
    principal: Principal
    until: float


class Principals:
    """Thread-safe. Only good keys are remembered, each for at most `MAX_SECONDS`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._remembered: dict[str, _Remembered] = {}
        self._num_changes = 0

    def get(self, secret_sha256: str) -> Principal | None:
        with self._lock:
            found = self._remembered.get(secret_sha256)
        return found.principal if found is not None and self._clock() < found.until else None

    def read(self, secret_sha256: str, prove: Callable[[], tuple[Principal, float]]) -> Principal:
        """By `prove()`, outside the lock, which says also for how many seconds that holds at most."""
        started = self._clock()
        with self._lock:
            num_changes = self._num_changes
        principal, seconds = prove()
        with self._lock:
            if self._num_changes == num_changes:  # else what was proved may be over already
                if len(self._remembered) >= _MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[secret_sha256] = _Remembered(principal, started + min(seconds, MAX_SECONDS))
        return principal

    def forget(self) -> None:
        """Something about keys or tenants was changed here."""
        with self._lock:
            self._num_changes += 1
            self._remembered.clear()
