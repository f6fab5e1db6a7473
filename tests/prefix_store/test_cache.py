"""Least recently used out, by bytes; one load for any number of first uses."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from prefix_store.cache import PrefixCache
from prefix_store.errors import CorruptPrefix
from prefix_store.prefix import Prefix
from tests.prefix_store.support import keys_and_values

ONE = keys_and_values().nbytes


def a_prefix(num_virtual_tokens: int = 3) -> Prefix:
    return Prefix(keys_and_values(num_virtual_tokens=num_virtual_tokens), revision="", kind="prefix")


def never() -> Prefix:
    raise AssertionError("loaded what was in memory")


def test_what_was_loaded_is_answered_from_memory() -> None:
    cache = PrefixCache(max_bytes=ONE)
    assert cache.get("a") is None
    loaded = cache.get_or_load("a", a_prefix)
    assert cache.get("a") is loaded
    assert cache.get_or_load("a", never) is loaded
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.loads) == (2, 1, 1)


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(max_bytes=2 * ONE)
    cache.get_or_load("a", a_prefix)
    cache.get_or_load("b", a_prefix)
    cache.get("a")
    cache.get_or_load("c", a_prefix)
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None
    assert (cache.stats.evictions, cache.stats.num_prefixes, cache.stats.num_bytes) == (1, 2, 2 * ONE)


def test_a_large_prefix_pushes_out_as_many_as_its_bytes_need() -> None:
    cache = PrefixCache(max_bytes=3 * ONE)
    for key in "abc":
        cache.get_or_load(key, a_prefix)
    cache.get_or_load("large", lambda: a_prefix(num_virtual_tokens=6))
    assert [cache.get(key) is not None for key in ("a", "b", "c", "large")] == [False, False, True, True]


def test_a_prefix_larger_than_the_cache_is_served_and_not_kept() -> None:
    cache = PrefixCache(max_bytes=ONE - 1)
    assert cache.get_or_load("a", a_prefix).num_virtual_tokens == 3
    assert cache.get("a") is None
    assert cache.stats.num_bytes == 0


def test_a_discarded_prefix_gives_its_bytes_back() -> None:
    cache = PrefixCache(max_bytes=ONE)
    cache.get_or_load("a", a_prefix)
    cache.discard("a")
    cache.discard("a")
    assert cache.get("a") is None
    assert cache.stats.num_bytes == 0


class SlowLoad:
    """Begins, tells so, and ends when it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.let_go = Event(), Event()
        self.error = error

    def __call__(self) -> Prefix:
        assert not self.begun.is_set(), "loaded twice"
        self.begun.set()
        assert self.let_go.wait(timeout=30)
        if self.error:
            raise self.error
        return a_prefix()


def test_others_are_answered_while_one_loads() -> None:
    cache = PrefixCache(max_bytes=4 * ONE)
    slow = SlowLoad()
    with ThreadPoolExecutor() as threads:
        loading = threads.submit(cache.get_or_load, "slow", slow)
        assert slow.begun.wait(timeout=30)
        assert cache.get("slow") is None
        assert cache.get_or_load("quick", a_prefix) is not None
        slow.let_go.set()
        assert loading.result() is cache.get("slow")


def test_a_load_that_fails_fails_for_all_who_waited_and_is_tried_again() -> None:
    cache = PrefixCache(max_bytes=ONE)
    slow = SlowLoad(error=CorruptPrefix("a", "is damaged"))
    with ThreadPoolExecutor() as threads:
        first = threads.submit(cache.get_or_load, "a", slow)
        assert slow.begun.wait(timeout=30)
        second = threads.submit(cache.get_or_load, "a", slow)
        while cache.stats.misses < 2:
            pass  # until the second waits too
        slow.let_go.set()
        for waiting in (first, second):
            with pytest.raises(CorruptPrefix):
                waiting.result()
    assert cache.get_or_load("a", a_prefix) is not None
