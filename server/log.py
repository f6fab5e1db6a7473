"""The server's own log: one line an event, JSON, or colours on a terminal. Knows nothing of what is logged."""

import sys
from typing import TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def make_logger(stream: TextIO | None = None) -> FilteringBoundLogger:
    """A logger of its own, by default on the standard error stream; structlog's global configuration is left alone."""
    stream = stream or sys.stderr
    common: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor = structlog.dev.ConsoleRenderer() if stream.isatty() else structlog.processors.JSONRenderer()
    lazy = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[*common, renderer],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    logger: FilteringBoundLogger = lazy.bind()  # else each line would make one
    return logger
