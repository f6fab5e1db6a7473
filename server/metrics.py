"""What the server counts, in Prometheus' format. Knows nothing of who asks for it.

One registry per server, so that two servers in one process count for themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from batching.types import StepStats
from prefix_store.store import PrefixStore
from server.async_engine import AsyncEngine
from server.collectors import EngineCollector, StoreCollector
from server.engine_messages import Pulse
from server.stream import Outcome

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLOW_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    def __init__(self, store: PrefixStore) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(StoreCollector(store))
        ProcessCollector(registry=self.registry)
        self._gauge("build_info", "Always 1; which release this is", "version").labels(version("polyprefix")).set(1)

        self.requests = self._counter("requests", "Answered requests", "route", "status")
        self.request_seconds = self._histogram(
            "request_seconds", "From the request to the end of its answer", SLOW_SECONDS
        )
        self.streams = self._counter("streams", "Streams that had begun, by their end", "outcome")
        for outcome in Outcome:
            self.streams.labels(outcome)  # of a series that begins with its first error no alert sees that one
        self.queue_seconds = self._histogram("queue_seconds", "From the engine's queue to a slot", SLOW_SECONDS)
        self.first_token_seconds = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token", SLOW_SECONDS
        )
        self.inter_token_seconds = self._histogram(
            "inter_token_latency_seconds", "From a row's token to its next one", FAST_SECONDS
        )
        self.end_to_end_seconds = self._histogram(
            "e2e_request_latency_seconds",
            "From the request to the last token of a row that came to its end",
            SLOW_SECONDS,
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, virtual tokens left out")
        self.generated_tokens = self._counter("generated_tokens", "Tokens generated")
        self.uploads = self._counter("uploads", "Published prefixes", "kind")

        self.steps = self._counter("steps", "Forward passes")
        self.mixed_steps = self._counter("mixed_steps", "Forward passes that held rows of different prefixes")
        self.step_rows = self._histogram("step_rows", "Rows of a forward pass", ROWS)
        self.step_prefixes = self._histogram("step_distinct_prefixes", "Distinct prefixes of a forward pass", ROWS)
        self.step_seconds = self._histogram("step_seconds", "How long a forward pass took", FAST_SECONDS, "phase")
        self.waiting = self._gauge("requests_waiting", "Requests that wait for a slot")
        self.running = self._gauge("requests_running", "Requests that have a slot")
        self.free_slots = self._gauge("free_slots", "Slots that nobody holds")
        self.num_damaged = self._gauge("store_damaged", "Records and files that the last look found damaged")

    def watch(self, engine: AsyncEngine) -> None:
        """Tell of this engine too, which has not begun to work."""
        self.registry.register(EngineCollector(engine))
        ProcessCollector("polyprefix_engine", lambda: engine.pid, registry=self.registry)
        self.free_slots.set(engine.max_num_seqs)

    def observe_pulse(self, pulse: Pulse) -> None:
        self.waiting.set(pulse.num_waiting)
        self.running.set(pulse.num_running)
        self.free_slots.set(pulse.num_free_slots)
        if pulse.stats is not None:
            self.steps.inc()
            self.mixed_steps.inc(pulse.stats.num_distinct_prefixes > 1)
            self.step_rows.observe(pulse.stats.num_rows)
            self.step_prefixes.observe(pulse.stats.num_distinct_prefixes)
            self.step_seconds.labels(_phase(pulse.stats)).observe(pulse.stats.seconds)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """On a port of its own, to whoever reaches it; 0 takes a free one, which is returned. Raises `OSError`."""
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise OSError(error.errno, f"{host}:{port}, for the metrics: {error.strerror}") from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"polyprefix_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"polyprefix_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"polyprefix_{name}", what, labels, buckets=buckets, registry=self.registry)


def _phase(stats: StepStats) -> str:
    """What a step's rows did: read their prompts, go on from tokens of their own, or some the one, some the other."""
    if stats.num_prefill_tokens == 0:
        return "decode"
    return "mixed" if stats.num_decode_tokens else "prefill"
