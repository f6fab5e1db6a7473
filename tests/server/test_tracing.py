"""A row's spans: how long each phase was, and whose they are."""

import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.tracing import trace_row


def traced(*moments: float | None) -> dict[str, tuple[float, float]]:
    """By span: how long after the first moment it began, and its length, in seconds; all are the request's children."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        trace_row(tracer, {"polyprefix.task": "poet"}, *moments)
    spans = [span for span in exporter.get_finished_spans() if span.name != "request"]
    for span in spans:
        assert span.parent == request.get_span_context()
        assert span.attributes == {"polyprefix.task": "poet"}
    begun_at = spans[0].start_time
    return {
        span.name: (
            round((span.start_time - begun_at) / 1e9, 3),
            round((span.end_time - span.start_time) / 1e9, 3),
        )
        for span in spans
    }


def test_a_row_that_came_to_its_end_has_three_phases() -> None:
    now = time.monotonic()
    assert traced(now - 7, now - 6, now - 4, now) == {"queue": (0, 1), "prefill": (1, 2), "decode": (3, 4)}


def test_a_row_that_never_said_a_token_has_what_came_about() -> None:
    now = time.monotonic()
    assert traced(now - 7, now - 6, None, None) == {"queue": (0, 1)}
