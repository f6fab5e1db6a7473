"""Loaded prefixes in host memory: least recently used out by bytes, and one load for any number of first uses.

Knows keys and prefixes. Knows nothing of files, tasks or versions; a key must name the bytes, never a task, so that
a replaced task cannot find its former prefix.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

from prefix_store.prefix import Prefix


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counted since the start: uses answered from memory (`hits`) and not (`misses`), prefixes read from the store
    (`loads`, fewer than misses where several waited for one), and `evictions`. Now: `num_bytes`, `num_prefixes`."""

    hits: int
    misses: int
    loads: int
    evictions: int
    num_bytes: int
    num_prefixes: int


class PrefixCache:
    """Thread-safe. `max_bytes` bounds what is kept; a prefix that a request holds lives on until the request ends."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()  # held for dictionary operations only, never while something loads
        self._kept: OrderedDict[Hashable, Prefix] = OrderedDict()  # the most recently used last
        self._loading: dict[Hashable, Future[Prefix]] = {}
        self._num_bytes = 0
        self._hits = self._misses = self._loads = self._evictions = 0

    def get(self, key: Hashable) -> Prefix | None:
        """From memory or not at all."""
        with self._lock:
            return self._use(key)

    def get_or_load(self, key: Hashable, load: Callable[[], Prefix]) -> Prefix:
        """From memory, or by `load()` in the calling thread; whoever asks meanwhile waits for that same load.

        What `load` raises is raised to all who waited, and the next call tries again.
        """
        with self._lock:
            if prefix := self._use(key):
                return prefix
            self._misses += 1
            others = self._loading.get(key)
            if others is None:
                mine = self._loading[key] = Future[Prefix]()
        if others is not None:
            return others.result()
        try:
            mine.set_result(load())
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            self._landed(key, mine)
        return mine.result()

    def discard(self, key: Hashable) -> None:
        """Forget a prefix that nothing can ask for any more."""
        with self._lock:
            if prefix := self._kept.pop(key, None):
                self._num_bytes -= prefix.nbytes

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                self._hits, self._misses, self._loads, self._evictions, self._num_bytes, num_prefixes=len(self._kept)
            )

    def _use(self, key: Hashable) -> Prefix | None:
        prefix = self._kept.get(key)
        if prefix is not None:
            self._kept.move_to_end(key)
            self._hits += 1
        return prefix

    def _landed(self, key: Hashable, flight: Future[Prefix]) -> None:
        with self._lock:
            del self._loading[key]
            if flight.exception() is None:
                self._loads += 1
                self._keep(key, flight.result())

    def _keep(self, key: Hashable, prefix: Prefix) -> None:
        self._kept[key] = prefix
        self._num_bytes += prefix.nbytes
        while self._num_bytes > self._max_bytes:
            _, evicted = self._kept.popitem(last=False)
            self._num_bytes -= evicted.nbytes
            self._evictions += 1
