"""Clients that leave, one after another, while their request is queued, in prefill or decoding: what is left of each.

The quick form is in `test_disconnects.py` here, the long one in `tests/torture`.
"""

import json
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer as Backend
from transformers import GPT2LMHeadModel

from batching.engine import Engine, Output
from batching.gpt2 import Backbone
from tests.server.conftest import Running, running
from tests.server.fakes import Gate

PHASES = ("queued", "prefill", "decoding")
PIECE = 8  # tokens of a prompt that a step reads: with 60 a prompt takes eight steps
PROMPT = "a" * 60
STEPS_BEFORE = {"queued": 1, "prefill": 3, "decoding": 12}  # that the client waits before it leaves
STEPS_TO_FREE = 2
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, as a client that was killed does


class HeldEngine(Engine):
    """The real engine, by default with one slot, held at a gate before each step."""

    def __init__(self, model: Path, max_num_seqs: int = 1) -> None:
        super().__init__(Backbone.from_model(GPT2LMHeadModel.from_pretrained(model)), max_num_seqs)
        self.before_step = Gate()
        self._scheduler._max_prefill_tokens = self._scheduler._max_first_prefill_tokens = PIECE

    def step(self) -> list[Output]:
        self.before_step()
        return super().step()

    def phase_of_newest(self) -> str:
        *_, newest = self._sequences.values()
        if not newest.rows:
            return "queued"
        return "decoding" if newest.rows[0].output_token_ids else "prefill"


@contextmanager
def held_server(directory: Path, model: Path, backend: Backend) -> Iterator[Running]:
    with running(directory, backend, HeldEngine(model)) as server:  # type: ignore[arg-type]
        yield server


def leave_many(server: Running, num_clients: int, seed: int) -> list[str]:
    """Let so many clients leave, in all phases alike, half of them by a reset; what was left of any."""
    chooser = random.Random(seed)
    return [
        f"client {number}, {phase}: {problem}"
        for number, phase in enumerate(PHASES[i % len(PHASES)] for i in range(num_clients))
        for problem in _leave(server, phase, chooser)
    ]


def _leave(server: Running, phase: str, chooser: random.Random) -> list[str]:
    engine: HeldEngine = server.engine  # type: ignore[assignment]
    others = [_ask(server, chooser)] if phase == "queued" else []  # it holds the one slot
    server.wait_for_open_rows(len(others))
    client = _ask(server, chooser)
    server.wait_for_open_rows(len(others) + 1)
    engine.before_step.allow(STEPS_BEFORE[phase])
    engine.before_step.wait_until_held()
    found = engine.phase_of_newest()
    problems = [] if found == phase else [f"it was {found}"]
    for connection in (client, *others):  # the queued one first
        num_rows = server.services.engine.room.num_rows
        if chooser.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()
        server.wait_for_open_rows(num_rows - 1)
        engine.before_step.allow(STEPS_TO_FREE)
        _wait_until_held_or_idle(engine)
        problems += _leaks(server, num_rows - 1)
    return problems


def _ask(server: Running, chooser: random.Random) -> socket.socket:
    """Send a request that would take long, streaming or not, and do not wait for its answer."""
    parameters = {"max_new_tokens": 60, "min_new_tokens": 60}
    body = json.dumps({"inputs": PROMPT, "parameters": parameters, "stream": chooser.random() < 0.5}).encode()
    head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
    connection = socket.create_connection(("127.0.0.1", server.port), 20)
    connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
    return connection


def _wait_until_held_or_idle(engine: HeldEngine) -> None:
    """Returns when the steps that were allowed are done, or nothing is left to do."""
    deadline = time.monotonic() + 20
    while engine.has_work and not engine.before_step.is_held:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def _leaks(server: Running, num_open: int) -> list[str]:
    engine: HeldEngine = server.engine  # type: ignore[assignment]
    accounts = engine._scheduler._fair_share._accounts
    counts = {
        "requests": len(engine._sequences),
        "rows running or waiting": engine.num_running + engine.num_waiting,
        "slots taken": engine.max_num_seqs - engine.num_free_slots,
        "rows on the accounts": sum(account.num_slots + account.num_waiting for account in accounts.values()),
        "mailboxes": len(server.services.engine._mailboxes),
    }
    return [f"{count} {name}, expected {num_open}" for name, count in counts.items() if count != num_open]
