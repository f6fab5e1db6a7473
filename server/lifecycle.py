"""The server's life: ready, draining, ended. Knows signals and deadlines; knows nothing of HTTP or of what is drained.

Draining: unready at once; a short notice, in which load balancers see it and what they still send is answered; then no
new work and no new connections while what is in flight goes on, up to the drain timeout; then what is left ends with an
error.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType

from structlog.typing import FilteringBoundLogger

DEAD_LINGER = (
    1.0  # seconds in which a server with a dead engine still answers, so that the open requests get their errors
)
DEAD_EXIT_CODE = 1


class Lifecycle:
    """Made and used on the event loop. `ending` is set when the server should stop to listen.

    `is_draining`: it is not ready, and what has come goes on. `is_closed`: no new work is taken either.
    """

    def __init__(self, log: FilteringBoundLogger, drain_notice: float, drain_timeout: float) -> None:
        self._log = log
        self._drain_notice = drain_notice
        self._drain_timeout = drain_timeout
        self._loop = asyncio.get_running_loop()
        self.is_draining = False
        self.is_closed = False
        self.ending = asyncio.Event()
        self.exit_code = 0

    def listen_to_signals(self, give_up: Callable[[], None]) -> None:
        """Drain on the first SIGTERM or SIGINT; the second one ends the process at once.

        `give_up` is called when the drain timeout has passed.
        """
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signal_number, self._on_signal, signal_number, give_up)

    def drain(self, give_up: Callable[[], None]) -> None:
        if not self.is_draining:
            self.is_draining = True
            self._log.info("draining", notice=self._drain_notice, timeout=self._drain_timeout)
            notice = min(self._drain_notice, self._drain_timeout)  # nothing is taken that would be given up at once
            self._loop.call_later(notice, self.close)
            self._loop.call_later(notice, self.ending.set)
            self._loop.call_later(self._drain_timeout, give_up)

    def close(self) -> None:
        self.is_closed = True

    def engine_died(self, reason: str) -> None:
        self._log.error("engine_died", reason=reason)
        self.is_draining = True
        self.exit_code = DEAD_EXIT_CODE
        self._loop.call_later(DEAD_LINGER, self.ending.set)

    def _on_signal(self, signal_number: signal.Signals, give_up: Callable[[], None]) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(each)
            signal.signal(each, end_at_once)
        self._log.info("signal", name=signal_number.name)
        self.drain(give_up)


def end_at_once(signal_number: int, _: FrameType | None) -> None:
    """What a signal does by itself, but for a container's first process, which it leaves as it is."""
    signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)
    os._exit(128 + signal_number)
