"""The server's own log: one line an event, JSON, or colours on a terminal. Knows nothing of what is logged.

What the log tells of goes on where it cannot be written: a full disk must not keep a server from draining.
"""

import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor


class LossyStream:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def make_logger(stream: TextIO | None = None) -> FilteringBoundLogger:
    """A logger of its own, by default on the standard error stream; structlog's global configuration is left alone."""
    stream = stream or sys.stderr
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = structlog.processors.JSONRenderer()
    if stream.isatty():
        renderer = structlog.dev.ConsoleRenderer(repr_native_str=True)  # a path may hold what moves a terminal's cursor
    lazy = structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, LossyStream(stream))),
        processors=[*common, renderer],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    logger: FilteringBoundLogger = lazy.bind()  # else each line would make one
    return logger
