"""The engine's process, from the side of the server that starts it and sees it end.

Knows processes: beside the engine's, one that reads the model for it and ends. Knows nothing of what the engine does.
"""

import os
import socket
import subprocess
import sys
import tempfile
from typing import Any

from batching.checks import Capacity
from prefix_store.shared_memory import SharedMemory
from server.channel import Channel
from server.engine_messages import Allocate, BackboneFacts, LoadBackbone, StartFailure


class EngineStartError(RuntimeError):
    """The engine could not be started; the message says why."""


class EngineProcess:
    """Its methods wait: they are for a thread other than the event loop's."""

    def __init__(self, memory: SharedMemory | None = None) -> None:
        """`memory` is where the prefixes are that it will be told of; without, they go over in bytes."""
        self.socket, theirs = socket.socketpair()
        self._checkpoint = _scratch()
        with theirs:
            descriptors = theirs.fileno(), self._checkpoint
            self._popen = subprocess.Popen(
                (sys.executable, "-P", "-m", "server.engine_main", *map(str, descriptors)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[*descriptors, *([] if memory is None else [memory.fileno()])],
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def load(self, order: LoadBackbone) -> BackboneFacts:
        """Raises `EngineStartError`."""
        try:
            self._read_checkpoint(order)
            facts: BackboneFacts = self._ask(order)
        finally:
            os.close(self._checkpoint)
        return facts

    def allocate(self, order: Allocate) -> Capacity:
        """Make the slots; from then on the engine takes requests. Raises `EngineStartError`."""
        capacity: Capacity = self._ask(order)
        return capacity

    def end(self) -> int:
        """End it where it has not ended; returns its exit status, negative that of a signal."""
        self.socket.close()
        self._popen.kill()  # it holds nothing that could be lost
        return self._popen.wait()

    def _read_checkpoint(self, order: LoadBackbone) -> None:
        """Meanwhile the engine's process imports what it needs."""
        what = (str(self._checkpoint), order.model, order.device, order.dtype)
        reader = subprocess.run(
            (sys.executable, "-P", "-m", "server.checkpoint_main", *what),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self._checkpoint],
            check=False,
        )
        if reader.returncode != 0:
            status = f"the process that reads the model ended with status {reader.returncode}"
            raise EngineStartError(reader.stdout.strip() or status)

    def _ask(self, order: LoadBackbone | Allocate) -> Any:
        channel = Channel(self.socket)
        try:
            channel.send(order)
            answer = channel.receive()
        except (EOFError, OSError):
            raise EngineStartError(f"the engine's process ended with status {self._popen.wait()}") from None
        if isinstance(answer, StartFailure):
            raise EngineStartError(answer.reason)
        return answer


def _scratch() -> int:
    """The descriptor of a file without a name; in memory, where the system has such."""
    if sys.platform == "linux":
        return os.memfd_create("checkpoint")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
