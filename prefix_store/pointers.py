"""Which version each task serves, remembered in memory so that a request needs no SQL.

Knows keys and what was last read or written under them. Knows nothing of the registry itself.
"""

import math
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock

from prefix_store.errors import StoreError, StoreUnavailable
from prefix_store.tasks import Shares, TaskConfig, TaskVersion

TaskKey = tuple[str, str]  # tenant, task_id


@dataclass(frozen=True, slots=True)
class Pointer:
    """`tenant` is whose task it is; under another tenant's key it is a public one. `shares` is empty where `version`
    gets all requests."""

    tenant: str
    version: TaskVersion
    config: TaskConfig
    shares: Shares = ()

    def drawn(self, draw: float) -> TaskVersion:
        """The version of a request that drew this number from [0, 1).

        One that is not in service gets none, and the others more; where none of them is, it is `version`.
        """
        shares = [(version, weight) for version, weight in self.shares if version.is_in_service]
        if not shares:
            return self.version
        bounds = list(accumulate(weight for _, weight in shares))
        version, _ = shares[bisect(bounds, draw * bounds[-1], hi=len(bounds) - 1)]
        return version


class ServedPointers:
    """Thread-safe. Holds the tasks that were used or written since the start; an unknown task is never remembered.

    What was read holds for `max_seconds`: for ever where nobody else writes. Where the registry cannot be read then,
    what it said last goes on holding, and it is asked again after as long.
    """

    def __init__(self, max_seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seconds = max_seconds
        self._clock = clock
        self._lock = Lock()
        self._pointers: dict[TaskKey, tuple[Pointer, float]] = {}  # with the moment when it was read
        self._borrowers: defaultdict[TaskKey, set[TaskKey]] = defaultdict(set)  # of a public task, by its owner's key
        self._num_writes = 0

    def get(self, key: TaskKey) -> Pointer | None:
        with self._lock:
            return self._fresh(key)

    def get_or_read(self, key: TaskKey, read: Callable[[], Pointer]) -> Pointer:
        """From memory, or by `read()` outside the lock; read again if something was written meanwhile, since what
        was read may then be older than what is known."""
        while True:
            with self._lock:
                if pointer := self._fresh(key):
                    return pointer
                last, _ = self._pointers.get(key, (None, 0.0))
                num_writes = self._num_writes
            started = self._clock()
            try:
                pointer = read()
            except StoreUnavailable:
                if last is None:
                    raise
                pointer = last
                started = self._clock()  # trying may have taken longer than it holds
            except StoreError:
                with self._lock:
                    self._pointers.pop(key, None)  # deleted by somebody else, above all
                raise
            with self._lock:
                if self._num_writes == num_writes:
                    self._remember(key, pointer, started)
                    return pointer

    def put(self, key: TaskKey, pointer: Pointer) -> None:
        """What the key's owner has written; who borrowed the task reads it anew."""
        with self._lock:
            self._forget(key)
            self._remember(key, pointer, self._clock())

    def drop(self, key: TaskKey) -> None:
        with self._lock:
            self._forget(key)

    def _fresh(self, key: TaskKey) -> Pointer | None:
        pointer, read_at = self._pointers.get(key, (None, 0.0))
        return pointer if self._clock() < read_at + self._max_seconds else None

    def _remember(self, key: TaskKey, pointer: Pointer, read_at: float) -> None:
        self._pointers[key] = pointer, read_at
        owners_key = (pointer.tenant, key[1])
        if owners_key != key:
            self._borrowers[owners_key].add(key)

    def _forget(self, key: TaskKey) -> None:
        self._num_writes += 1
        for forgotten in (key, *self._borrowers.pop(key, ())):
            self._pointers.pop(forgotten, None)
