"""What a row waited for, as OpenTelemetry's spans: its queue, its prompt, its tokens; children of the request's own.

FastAPI makes the request's. Where no SDK is set up in the process, all of them are nothing. Is never given a text.
"""

import time
from collections.abc import Mapping
from itertools import pairwise

from opentelemetry.trace import Tracer

PHASES = ("queue", "prefill", "decode")


def trace_row(tracer: Tracer, attributes: Mapping[str, str | int], *moments: float | None) -> None:
    """`moments`: when the row's request arrived, it got its slot, said its first token, and its last, in monotonic
    seconds; None for what did not come about.
    """
    since_epoch = time.time() - time.monotonic()
    for phase, (begun_at, ended_at) in zip(PHASES, pairwise(moments), strict=True):
        if begun_at is not None and ended_at is not None:
            span = tracer.start_span(phase, attributes=attributes, start_time=int((begun_at + since_epoch) * 1e9))
            span.end(int((ended_at + since_epoch) * 1e9))
