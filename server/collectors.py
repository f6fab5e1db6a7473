"""What is read when Prometheus asks, and kept nowhere twice: the store's own counts, and how the engine is.

Knows the store and the engine. Asked in any thread.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from prefix_store.store import PrefixStore
from server.async_engine import AsyncEngine


class StoreCollector(Collector):
    def __init__(self, store: PrefixStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        stats = self._store.stats
        yield CounterMetricFamily("polyprefix_prefix_cache_hits", "Prefixes found in memory", stats.hits)
        yield CounterMetricFamily("polyprefix_prefix_cache_misses", "Prefixes not found in memory", stats.misses)
        yield CounterMetricFamily("polyprefix_prefix_cache_loads", "Prefixes read from the store", stats.loads)
        yield CounterMetricFamily("polyprefix_prefix_cache_evictions", "Prefixes put out of memory", stats.evictions)
        yield GaugeMetricFamily("polyprefix_prefix_cache_bytes", "Bytes of prefixes in memory", stats.num_bytes)
        yield GaugeMetricFamily("polyprefix_prefix_cache_prefixes", "Prefixes in memory", stats.num_prefixes)
        quarantines = self._store.num_quarantines
        yield CounterMetricFamily("polyprefix_quarantines", "Versions taken out of service", quarantines)


class EngineCollector(Collector):
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        yield GaugeMetricFamily("polyprefix_engine_up", "1 while the engine is healthy", int(engine.failure is None))
        yield GaugeMetricFamily(
            "polyprefix_engine_busy_seconds", "For how long it has not answered; 0 while it waits", engine.busy_seconds
        )
        yield GaugeMetricFamily("polyprefix_slots", "Rows that can run at once", engine.max_num_seqs)
