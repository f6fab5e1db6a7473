"""What the server counts, in Prometheus' format. Knows nothing of who asks for it.

One registry per server, so that two servers in one process count for themselves.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from prefix_store.store import PrefixStore
from server.async_engine import Pulse

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLOW_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class PrefixCacheCollector(Collector):
    """Reads the store's own counts when Prometheus asks."""

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


class Metrics:
    def __init__(self, store: PrefixStore) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(PrefixCacheCollector(store))

        self.requests = self._counter("requests", "Answered requests", "route", "status")
        self.request_seconds = self._histogram(
            "request_seconds", "From the request to the end of its answer", SLOW_SECONDS
        )
        self.streams = self._counter("streams", "Streams that had begun, by their end", "outcome")
        self.queue_seconds = self._histogram("queue_seconds", "From the request to its slot", SLOW_SECONDS)
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token", SLOW_SECONDS
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, virtual tokens left out")
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated")
        self.uploads = self._counter("uploads", "Published prefixes", "kind")

        self.steps = self._counter("steps", "Forward passes")
        self.mixed_steps = self._counter("mixed_steps", "Forward passes that held rows of different prefixes")
        self.step_rows = self._histogram("step_rows", "Rows of a forward pass", ROWS)
        self.step_prefixes = self._histogram("step_distinct_prefixes", "Distinct prefixes of a forward pass", ROWS)
        self.step_seconds = self._histogram("step_seconds", "How long a forward pass took", FAST_SECONDS)
        self.waiting = self._gauge("requests_waiting", "Requests that wait for a slot")
        self.running = self._gauge("requests_running", "Requests that have a slot")
        self.free_slots = self._gauge("free_slots", "Slots that nobody holds")

    def observe_pulse(self, pulse: Pulse) -> None:
        self.waiting.set(pulse.num_waiting)
        self.running.set(pulse.num_running)
        self.free_slots.set(pulse.num_free_slots)
        if pulse.stats is not None:
            self.steps.inc()
            self.mixed_steps.inc(pulse.stats.num_distinct_prefixes > 1)
            self.step_rows.observe(pulse.stats.num_rows)
            self.step_prefixes.observe(pulse.stats.num_distinct_prefixes)
            self.step_seconds.observe(pulse.stats.seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"polyprefix_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"polyprefix_{name}", what, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"polyprefix_{name}", what, buckets=buckets, registry=self.registry)
