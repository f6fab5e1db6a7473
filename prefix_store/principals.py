"""What keys proved a moment ago, remembered in memory so that a request needs no SQL.

Knows hashes of keys and a clock. Knows nothing of tables or of what makes a key good.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

from prefix_store.errors import StoreUnavailable, Unauthorized
from prefix_store.tenants import Principal

MAX_SECONDS = 2.0  # within which a key that another process revoked is refused here
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Remembered:
    """`is_due`: half of its time is over. Who asks anew then, meanwhile, never waits for a key that is in use."""

    principal: Principal
    is_due: bool


@dataclass(frozen=True, slots=True)
class _Proved:
    """`until` then it holds unasked, `at_most_until` then where nobody can be asked."""

    principal: Principal
    due_at: float
    until: float
    at_most_until: float


class Principals:
    """Thread-safe. Only good keys are remembered, each for at most `MAX_SECONDS`; for up to `max_outage` seconds where
    the registry cannot say what became of it, so that what is in memory can be served meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_outage: float = 0.0) -> None:
        self._clock = clock
        self._max_outage = max_outage
        self._lock = Lock()
        self._proved: dict[str, _Proved] = {}
        self._num_changes = 0

    @property
    def num_changes(self) -> int:
        """That were made here; what is being proved may be over at each."""
        return self._num_changes

    def get(self, secret_sha256: str) -> Remembered | None:
        with self._lock:
            found = self._proved.get(secret_sha256)
        now = self._clock()
        return Remembered(found.principal, now >= found.due_at) if found is not None and now < found.until else None

    def read(self, secret_sha256: str, prove: Callable[[], tuple[Principal, float]]) -> Principal:
        """By `prove()`, outside the lock, which says also for how many seconds that holds at most."""
        started = self._clock()
        with self._lock:
            num_changes = self._num_changes
        try:
            principal, seconds = prove()
        except StoreUnavailable:
            with self._lock:
                last = self._proved.get(secret_sha256)
                if last is None or started >= last.at_most_until:
                    raise
                now = self._clock()  # trying may have taken longer than it holds; asked again after as long
                until = min(now + MAX_SECONDS, last.at_most_until)
                self._proved[secret_sha256] = replace(last, due_at=now + MAX_SECONDS / 2, until=until)
            return last.principal
        except Unauthorized:
            with self._lock:
                self._proved.pop(secret_sha256, None)
            raise
        with self._lock:
            if self._num_changes == num_changes:  # else what was proved may be over already
                if len(self._proved) >= _MAX_REMEMBERED:
                    self._proved.clear()
                holds, at_most = min(seconds, MAX_SECONDS), min(seconds, self._max_outage)
                self._proved[secret_sha256] = _Proved(
                    principal, started + holds / 2, started + holds, started + at_most
                )
        return principal

    def forget(self) -> None:
        """Something about keys or tenants was changed here."""
        with self._lock:
            self._num_changes += 1
            self._proved.clear()
