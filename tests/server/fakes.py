"""An engine written by hand: it answers a prompt with itself, so that a test chooses the text by asking for it.

Its next token is a function of the row's own tokens and its prefix, never of its neighbours.
"""

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import torch

from batching.checks import Capacity, check_request
from batching.types import (
    Compile,
    Compiled,
    FinishReason,
    Request,
    StepOutput,
    StepRow,
    StepStats,
    TokenLogprob,
)
from prefix_store.prefix import BackboneShape
from server.channel import Channel
from server.engine_main import EngineLoop

SHAPE = BackboneShape(n_layer=2, n_head=4, head_dim=8, n_positions=128)
EOS = 256
VOCAB_SIZE = 257
FAILING = b"\x07"[0]  # a row's numbers are not finite when this token is its next one
RAISING = b"\x06"[0]  # a row's pass raises when this token is its next one
FAULTS = {FAILING: "the model gave numbers that are not finite", RAISING: "RuntimeError: no"}


class Gate:
    """Holds the engine before each step, until the test lets it go on: by steps, or for good."""

    def __init__(self) -> None:
        self._allowed = 0
        self._num_waiting = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self._num_waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed > 0)
            self._num_waiting -= 1
            self._allowed -= 1

    def allow(self, num_steps: int) -> None:
        with self._changed:
            self._allowed += num_steps
            self._changed.notify_all()

    def open(self) -> None:
        self.allow(10**9)

    @property
    def is_held(self) -> bool:
        """Whether the engine stands at the gate and has used up its steps."""
        return self._num_waiting > 0 and self._allowed == 0

    def wait_until_held(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.is_held, timeout=20)


@dataclass
class FakeRow:
    request: Request
    first_step: int = 0
    admitted_at: float = 0.0
    num_done: int = 0

    def next_token_id(self) -> int:
        says = [byte for prefix in self.request.prefixes if prefix is not None for byte in prefix.revision[:4].encode()]
        answer = [*says, *self.request.prompt_token_ids, EOS]
        return answer[min(self.num_done, len(answer) - 1)]


@dataclass
class EchoEngine:
    """`before_step` runs on the engine thread before each step: to hold it, or to raise."""

    max_num_seqs: int = 4
    max_model_len: int = 128
    before_step: Callable[[], None] = lambda: None
    last_step: StepStats | None = None
    waiting: list[Request | Compile] = field(default_factory=list)
    running: list[FakeRow] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    has_aborted: threading.Event = field(default_factory=threading.Event)
    num_steps: int = 0

    @property
    def capacity(self) -> Capacity:
        return Capacity(SHAPE, VOCAB_SIZE, self.max_num_seqs, self.max_model_len)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_free_slots(self) -> int:
        return self.max_num_seqs - len(self.running)

    def add_request(self, request: Request | Compile) -> None:
        check_request(request, self.capacity)
        self.waiting.append(request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.waiting = [request for request in self.waiting if request.request_id != request_id]
        self.running = [row for row in self.running if row.request.request_id != request_id]
        self.has_aborted.set()

    def step(self) -> list[StepOutput | Compiled]:
        self.before_step()
        self.num_steps += 1
        outputs: list[StepOutput | Compiled] = []
        while self.waiting and self.num_free_slots:
            request = self.waiting.pop(0)
            if isinstance(request, Compile):
                outputs.append(compiled(request))
            else:
                self.running.append(FakeRow(request, self.num_steps, monotonic()))
        prefixes = {row.request.prefix and row.request.prefix.revision for row in self.running}
        rows = tuple(
            StepRow(row.request.request_id, slot, 1, row.num_done > 0) for slot, row in enumerate(self.running)
        )
        outputs += [self._advance(row) for row in list(self.running)]
        counts = (len(prefixes), self.num_waiting, self.num_free_slots)
        self.last_step = StepStats(self.num_steps, rows, *counts, seconds=0.001, num_tokens=len(rows))
        return outputs

    def _advance(self, row: FakeRow) -> StepOutput:
        token_id = row.next_token_id()
        row.num_done += 1
        params = row.request.sampling_params
        reason = FinishReason.STOP if token_id == EOS else None
        if reason is None and row.num_done == params.max_new_tokens:
            reason = FinishReason.LENGTH
        if token_id in FAULTS:
            reason = FinishReason.ERROR
        if reason is not None:
            self.running.remove(row)
        failed = reason is FinishReason.ERROR
        top = tuple((token_id + i, -1.0 - i) for i in range(params.logprobs or 0))
        logprobs = (TokenLogprob(token_id, -1.0 - params.choice, top),) if params.logprobs is not None else ()
        return StepOutput(
            row.request.request_id,
            new_token_ids=() if failed else (token_id,),
            logprobs=() if failed else logprobs,
            prompt_logprobs=tuple(TokenLogprob(id, -2.0, ((id, -2.0),)) for id in row.request.prompt_token_ids[1:])
            if params.prompt_logprobs
            else (),
            finish_reason=reason,
            error=FAULTS[token_id] if failed else None,
            not_finite_row=len(row.request.prefixes) - 1 if token_id == FAILING else None,
            step=self.num_steps,
            first_step=row.first_step,
            admitted_at=row.admitted_at,
        )


def compiled(request: Compile) -> Compiled:
    T = len(request.embeddings) if request.token_ids is None else len(request.token_ids)  # type: ignore[arg-type]
    kv = torch.full((SHAPE.n_layer, 2, T, SHAPE.n_head, SHAPE.head_dim), 0.5)
    return Compiled(request.request_id, kv)


class EngineThread:
    """Runs an engine in this process, where a test can reach it; all else is as between two processes."""

    def __init__(self, engine: EchoEngine) -> None:
        self.socket, theirs = socket.socketpair()

        def run() -> None:
            with theirs:
                EngineLoop(engine, Channel(theirs)).run()

        threading.Thread(target=run, daemon=True).start()

    @property
    def pid(self) -> int:
        return os.getpid()

    def end(self) -> int:
        self.socket.close()
        return 0
