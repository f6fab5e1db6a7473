"""Which version each task serves, remembered in memory so that a request needs no SQL.

Knows keys and what was last read or written under them. Knows nothing of the registry itself.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from prefix_store.tasks import TaskConfig, TaskVersion

TaskKey = tuple[str, str]  # tenant, task_id


@dataclass(frozen=True, slots=True)
class Pointer:
    """`tenant` is whose task it is; under another tenant's key it is a public one."""

    tenant: str
    version: TaskVersion
    config: TaskConfig


class ServedPointers:
    """Thread-safe. Holds the tasks that were used or written since the start; an unknown task is never remembered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pointers: dict[TaskKey, Pointer] = {}
        self._borrowers: defaultdict[TaskKey, set[TaskKey]] = defaultdict(set)  # of a public task, by its owner's key
        self._num_writes = 0

    def get(self, key: TaskKey) -> Pointer | None:
        with self._lock:
            return self._pointers.get(key)

    def get_or_read(self, key: TaskKey, read: Callable[[], Pointer]) -> Pointer:
        """From memory, or by `read()` outside the lock; read again if something was written meanwhile, since what
        was read may then be older than what is known."""
        while True:
            with self._lock:
                if pointer := self._pointers.get(key):
                    return pointer
                num_writes = self._num_writes
            pointer = read()
            with self._lock:
                if self._num_writes == num_writes:
                    self._remember(key, pointer)
                    return pointer

    def put(self, key: TaskKey, pointer: Pointer) -> None:
        """What the key's owner has written; who borrowed the task reads it anew."""
        with self._lock:
            self._forget(key)
            self._remember(key, pointer)

    def drop(self, key: TaskKey) -> None:
        with self._lock:
            self._forget(key)

    def _remember(self, key: TaskKey, pointer: Pointer) -> None:
        self._pointers[key] = pointer
        owners_key = (pointer.tenant, key[1])
        if owners_key != key:
            self._borrowers[owners_key].add(key)

    def _forget(self, key: TaskKey) -> None:
        self._num_writes += 1
        for forgotten in (key, *self._borrowers.pop(key, ())):
            self._pointers.pop(forgotten, None)
