"""The engine's own process: it loads the backbone, then takes what has come, steps, and tells what the step did.

    python -m server.engine_main FD CHECKPOINT_FD

talks over the socket FD. What `server.checkpoint_main` read is in the file CHECKPOINT_FD once it is told to load.

A process, because a forward pass calls the interpreter some hundred times and would wait each time for whatever the
server is doing. Knows the engine and one end of a channel. Knows nothing of HTTP, of text, or of who asks.
"""

import gc
import os
import select
import signal
import socket
import sys
import threading
from typing import Protocol

from batching.checkpoint import Checkpoint, read
from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.kernels import HAS_KERNELS, flush_denormals
from batching.types import Abort, RequestError, StepStats
from prefix_store.prefix import BackboneSpec
from server.channel import Channel
from server.constraints import GrammarFollower
from server.engine_messages import (
    Allocate,
    BackboneFacts,
    Death,
    Drop,
    Keep,
    Letter,
    LoadBackbone,
    Pulse,
    StartFailure,
    Work,
)
from server.heap import give_back_what_is_free

# A forward pass fills all cores for tens of milliseconds; what the server has to do meanwhile is short, and comes first
NICENESS = 10


class EngineLike(Protocol):
    """What is asked of an engine; `batching.engine.Engine` is one."""

    last_step: StepStats | None

    @property
    def has_work(self) -> bool: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_free_slots(self) -> int: ...
    def add_request(self, request: Work) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def step(self) -> list[Letter]: ...


class EngineLoop:
    """Steps while there is work, and tells after each step; waits for the channel while there is none."""

    def __init__(self, engine: EngineLike, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._num_taken = 0

    def run(self) -> None:
        """Until the server ends, or the engine raises something; then that is told."""
        while True:
            try:
                items = self._take()
            except EOFError:
                return
            try:
                message: Pulse | Death = self._step(items)
            except BaseException as error:
                message = Death(f"the engine died: {type(error).__name__}: {error}")
            try:
                self._channel.send(message)
            except OSError:
                return
            if isinstance(message, Death):
                return

    def _take(self) -> list[Work | Abort]:
        """All that is there; where there is nothing to do, at least one message."""
        items: list[Work | Abort] = []
        while self._channel.has_message or not (items or self._engine.has_work):
            message = self._channel.receive()
            if isinstance(message, Keep):
                self._channel.known[message.number] = message.prefix
            elif isinstance(message, Drop):
                del self._channel.known[message.number]
            else:
                items += message
        self._num_taken += len(items)
        return items

    def _step(self, items: list[Work | Abort]) -> Pulse:
        engine = self._engine
        refusals = self._hand_over(items)
        before = engine.last_step
        letters = tuple(engine.step()) if engine.has_work else ()
        return Pulse(
            letters,
            refusals,
            None if engine.last_step is before else engine.last_step,
            engine.num_waiting,
            engine.num_running,
            engine.num_free_slots,
            self._num_taken,
            engine.has_work,
        )

    def _hand_over(self, items: list[Work | Abort]) -> tuple[tuple[str, str], ...]:
        """Give the engine what came. Returns what it refused."""
        refusals = []
        for item in items:
            if isinstance(item, Abort):
                self._engine.abort(item.request_id)
            else:
                try:
                    self._engine.add_request(item)
                except RequestError as error:
                    refusals.append((item.request_id, str(error)))
        return tuple(refusals)


def start(channel: Channel, checkpoint: int) -> Engine:
    """Load what the server asks for.

    Raises `ValueError`, `OSError`, `RuntimeError`, `MemoryError`: a wrong model, device, number.
    """
    load: LoadBackbone = channel.receive()
    backbone, tokenizer = unpack(checkpoint, load)
    spec = BackboneSpec(backbone.name, backbone.shape, backbone.fingerprint)
    names = backbone.dtype_name, backbone.device_name
    give_back_what_is_free()  # the weights as they were before they were packed
    is_slow = backbone.device.type == "cpu" and not HAS_KERNELS
    channel.send(BackboneFacts(spec, tokenizer, backbone.eos_token_id, *names, is_slow))
    allocate: Allocate = channel.receive()
    follower = GrammarFollower(tokenizer, backbone.eos_token_id)
    engine = Engine(
        backbone, allocate.max_num_seqs, allocate.max_model_len, allocate.has_reserve, constrain=follower.begin
    )
    engine.warm_up()
    channel.send(engine.capacity)
    return engine


def unpack(descriptor: int, load: LoadBackbone) -> tuple[Backbone, str]:
    """The backbone and the text of its tokenizer.json, out of the file, which is closed."""
    stored: tuple[Checkpoint, str] = read(descriptor)
    checkpoint, tokenizer = stored
    return Backbone.of(checkpoint, load.device, load.dtype, load.is_deterministic), tokenizer


def end_with(sock: socket.socket) -> None:
    """End this process once the other side of `sock` has ended, whatever the device is at."""
    hang_up = select.poll()
    hang_up.register(sock, 0)  # of data it hears nothing
    hang_up.poll()
    os._exit(0)


def main() -> None:
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)  # they may be sent to all processes: draining is the server's
    os.nice(NICENESS)
    flush_denormals()
    sock = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=end_with, args=[sock], daemon=True).start()
    channel = Channel(sock)
    try:
        engine = start(channel, int(sys.argv[2]))
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        channel.send(StartFailure(str(error)))
        sys.exit(1)
    except EOFError:  # the server has ended, or refused the model before there was anything to load
        sys.exit(1)
    gc.freeze()  # what was loaded stays: looking through it now and then held every row up
    EngineLoop(engine, channel).run()


if __name__ == "__main__":
    main()
