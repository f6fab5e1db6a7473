"""Which version each task serves, remembered in memory so that a request needs no SQL.

Knows keys and what was last read or written under them. Knows nothing of the registry itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from prefix_store.tasks import TaskConfig, TaskVersion

TaskKey = tuple[str, str]  # tenant, task_id


@dataclass(frozen=True, slots=True)
class Pointer:
    version: TaskVersion
    config: TaskConfig


class ServedPointers:
    """Thread-safe. Holds the tasks that were used or written since the start; an unknown task is never remembered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pointers: dict[TaskKey, Pointer] = {}
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
                    self._pointers[key] = pointer
                    return pointer

    def put(self, key: TaskKey, pointer: Pointer) -> None:
        with self._lock:
            self._num_writes += 1
            self._pointers[key] = pointer

    def drop(self, key: TaskKey) -> None:
        with self._lock:
            self._num_writes += 1
            self._pointers.pop(key, None)
