"""The engine: requests in, one forward pass at a time, what each pass did out.

All that the server sees of batching. Used from one thread. Knows nothing of asyncio, HTTP or text.
"""

import secrets
import time
from functools import partial

import torch

from batching.beams import BeamSearch
from batching.checks import Capacity, check_request
from batching.choices import Choice, TokenChooser, mixed
from batching.containment import Failure, run_contained
from batching.decode_graphs import DecodeGraphs
from batching.fairness import FairShare
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache, choose_num_slots
from batching.model_runner import ModelRunner, RowLogits
from batching.sampler import draw_uniforms, own_logprobs
from batching.scheduler import (
    GPU_MIN_PREFILL_TOKENS,
    MAX_FIRST_PREFILL_TOKENS,
    MAX_PREFILL_TOKENS,
    MIN_PREFILL_TOKENS,
    Scheduler,
)
from batching.sequence import Row, RowStep, Sequence
from batching.types import (
    Compile,
    Compiled,
    Constrain,
    FinishReason,
    Request,
    RequestError,
    RowConstraint,
    StepOutput,
    StepRow,
    StepStats,
)

# What a step has to say of one request
Output = StepOutput | Compiled

SMALL_N_EMBD = 768  # GPT-2 small's and DistilGPT-2's

# Seconds that a step waits for its rows' constraints, where no other row goes on meanwhile.
CONSTRAINTS_PATIENCE = 0.01

# Logits [64, 50257] in float32 are 13 MB; a whole prompt's at once would be sixteen times as much.
PROMPT_LOGPROBS_AT_ONCE = 64


def _cannot_constrain(constraint: object, vocab_size: int) -> RowConstraint:
    raise RequestError("this engine follows no constraints")


class Engine:
    def __init__(
        self,
        backbone: Backbone,
        max_num_seqs: int | None = None,
        max_model_len: int | None = None,
        has_reserve: bool = False,
        constrain: Constrain = _cannot_constrain,
        has_decode_graphs: bool | None = None,
    ) -> None:
        """Allocate the slots. `max_num_seqs` defaults to what fits in free memory, at most 64.

        `has_reserve`: an eighth of the slots is never given to a tenant beyond its share, and a request may ask for all
        but two eighths. `constrain` follows the constraints that requests may have. `has_decode_graphs`: whether
        steps that only decode run over fixed shapes, as graphs where the device has them; None: on CUDA.
        """
        self.backbone = backbone
        self.max_model_len = backbone.shape.n_positions if max_model_len is None else max_model_len
        if not 1 <= self.max_model_len <= backbone.shape.n_positions:
            raise ValueError(f"max_model_len is {max_model_len}; expected 1 to {backbone.shape.n_positions}")
        dtype, device = backbone.dtype, backbone.device
        has_graphs = device.type == "cuda" if has_decode_graphs is None else has_decode_graphs
        self.max_num_seqs = choose_num_slots(
            max_num_seqs, backbone.shape, self.max_model_len, dtype, device, has_graphs
        )
        self.cache = KVCache(backbone.shape, self.max_num_seqs, self.max_model_len, dtype, device, has_graphs)
        num_reserved_slots = self.max_num_seqs // 8 if has_reserve else 0
        self.capacity = Capacity(
            backbone.shape, backbone.vocab_size, self.max_num_seqs, self.max_model_len, num_reserved_slots
        )
        self._constrain = constrain
        self._runner = ModelRunner(backbone, self.cache, DecodeGraphs(backbone, self.cache) if has_graphs else None)
        self._chooser = TokenChooser(backbone.eos_token_id, self.cache)
        fair_share = FairShare(self.max_num_seqs, num_reserved_slots)
        min_prefill_tokens = GPU_MIN_PREFILL_TOKENS if device.type == "cuda" else MIN_PREFILL_TOKENS
        is_small = backbone.shape.n_embd <= SMALL_N_EMBD
        max_first_prefill_tokens = MAX_FIRST_PREFILL_TOKENS if is_small else MAX_PREFILL_TOKENS
        self._scheduler = Scheduler(
            self.cache, fair_share, min_prefill_tokens, MAX_PREFILL_TOKENS, max_first_prefill_tokens
        )
        self._sequences: dict[str, Sequence] = {}
        self._aborted: list[Output] = []
        self._num_steps = 0
        self._num_tokens = 0  # of this step
        self.last_step: StepStats | None = None  # of the last step that had rows

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._aborted)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_free_slots(self) -> int:
        return self.cache.num_free

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Do beforehand what the first step of each size would have to, where rows decode and none wants its prompt's
        log-probabilities."""
        num_rows = self.max_num_seqs
        self.backbone.warm_up(num_rows + self._scheduler.max_prompt_tokens_beside(num_rows), num_rows)

    def check(self, request: Request | Compile) -> None:
        """Raise `RequestError` if the request can never be served. Pure, so that it may run before queueing."""
        check_request(request, self.capacity)

    def add_request(self, request: Request | Compile) -> None:
        self.check(request)
        if request.request_id in self._sequences:
            raise RequestError(f"request {request.request_id!r} is already here")
        sequence = Sequence(request)
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Free what the request holds; the next step reports it. An unknown or finished id is ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            if not sequence.first_step:  # no pass has told yet whether its prefix is finite in the cache's numbers
                for row in sequence.rows:
                    self.cache.clear(row.slot, row.num_cached)
            self._aborted.append(self._end(sequence, FinishReason.ABORT, "aborted"))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one forward pass and report what it did for each request: its tokens, its end, or that it has a slot."""
        started_at = time.monotonic()
        outputs, self._aborted = self._aborted, []
        admitted = self._scheduler.admit()
        prepared = run_contained(self._prepare, admitted)
        for sequence, result in zip(admitted, prepared, strict=True):
            if isinstance(result, Failure):
                outputs.append(self._fail(sequence, result.reason))
        steps = self._scheduler.schedule()
        if not steps:
            return outputs
        self._num_steps += 1
        for step in steps:
            step.sequence.first_step = step.sequence.first_step or self._num_steps
        rows = tuple(map(_step_row, steps))  # before they have got further
        self._num_tokens = 0
        outputs += self._commit(steps, run_contained(self._runner.execute, steps))
        outputs += self._report_admitted(admitted, outputs)
        self.last_step = self._stats(steps, rows, time.monotonic() - started_at)
        return outputs

    def _prepare(self, admitted: list[Sequence]) -> list[None]:
        """Fill the slots of rows that have a prefix. From here on the engine does not know that tasks exist."""
        for sequence in admitted:
            sequence.admitted_at = time.monotonic()
            request = sequence.request
            if isinstance(request, Compile):
                continue
            params = request.sampling_params
            for row in sequence.rows:
                if row.prefix is not None:
                    self.cache.write_prefix(row.slot, row.prefix.past_key_values)
            if params.temperature > 0:
                seed = secrets.randbits(64) if params.seed is None else params.seed
                sequence.uniforms = draw_uniforms(seed, params.choice, params.max_new_tokens).tolist()
            if request.constraint is not None:
                sequence.constraint = self._constrain(request.constraint, self.backbone.vocab_size)
            if params.num_beams > 1:
                sequence.beams = BeamSearch(
                    num_beams=params.num_beams,
                    length_penalty=params.length_penalty,
                    early_stopping=params.early_stopping,
                    max_new_tokens=params.max_new_tokens,
                    eos_token_id=self.backbone.eos_token_id,
                )
        return [None] * len(admitted)

    def _commit(self, steps: list[RowStep], results: list[RowLogits | Failure]) -> list[Output]:
        """Advance every row by what was computed, and choose the next token of those that have read all they know.

        A row that may not be told yet what it is allowed to say stays before its last token, and comes here again.
        """
        outputs = self._fail_rows(steps, results)
        computed = {
            step.row: result for step, result in zip(steps, results, strict=True) if isinstance(result, RowLogits)
        }
        held = _held_by_constraints(steps)
        completed: list[Sequence] = []
        for step in steps:
            sequence, row = step.sequence, step.row
            if sequence.request.request_id not in self._sequences:
                continue
            is_first_row, completes_row = row is sequence.rows[0], step.completes_row and sequence not in held
            if is_first_row and _tells_of_its_prompt(step):
                (told,) = run_contained(partial(self._read_prompt, computed), [step])
                if isinstance(told, Failure):
                    outputs.append(self._fail(sequence, told.reason))
                    continue
                if told is not None:
                    self._forget(sequence)
                    outputs.append(told)
                    continue
            row.num_cached += step.num_new_tokens - (sequence in held)
            if completes_row and is_first_row:
                completed.append(sequence)
        return outputs + self._choose_tokens(completed, computed)

    def _fail_rows(self, steps: list[RowStep], results: list[RowLogits | Failure]) -> list[Output]:
        """End every sequence one of whose rows could not be computed."""
        outputs = []
        for step, result in zip(steps, results, strict=True):
            sequence = step.sequence
            if sequence.request.request_id not in self._sequences:
                continue  # another of its rows has just failed
            if isinstance(result, Failure):
                outputs.append(self._fail(sequence, result.reason))
            elif not result.is_finite:
                place = sequence.prefixes.index(step.row.prefix)
                outputs.append(self._fail(sequence, "the model's logits are not finite numbers", place))
        return outputs

    def _choose_tokens(self, sequences: list[Sequence], completed: dict[Row, RowLogits]) -> list[Output]:
        """Choose the next token of every sequence, whose rows are all completed, and report what is to be told by
        now."""
        outputs: list[Output] = []
        for sequence, choice in zip(sequences, self._chooser.choose(sequences, completed), strict=True):
            if isinstance(choice, Failure):
                outputs.append(self._fail(sequence, choice.reason))
                continue
            self._num_tokens += 1
            self._scheduler.charge(sequence, choice.num_tokens)
            if choice.token_ids:
                outputs.append(self._report(sequence, choice))
        return outputs

    def _report_admitted(self, admitted: list[Sequence], outputs: list[Output]) -> list[Output]:
        """That a request has left the queue, of those of which the step's `outputs` do not say more."""
        reported = {output.request_id for output in outputs}
        return [
            self._report_without_tokens(sequence)
            for sequence in admitted
            if sequence.request.request_id not in reported
        ]

    def _read_prompt(self, computed: dict[Row, RowLogits], steps: list[RowStep]) -> list[Compiled | None]:
        """What each step's prompt became in the cache, for who asked for that; for others the log-probabilities of its
        tokens are kept."""
        told: list[Compiled | None] = []
        for step in steps:
            sequence, request = step.sequence, step.sequence.request
            if isinstance(request, Compile):
                past_key_values = self.cache.read(sequence.slots[0], sequence.num_prompt_tokens)
                told.append(Compiled(request.request_id, past_key_values))
            else:
                self._read_prompt_logprobs(step, request, computed)
                told.append(None)
        return told

    def _read_prompt_logprobs(self, step: RowStep, request: Request, computed: dict[Row, RowLogits]) -> None:
        """Keep the log-probability of each prompt token that the logits foretell: those of the step, and of the steps
        that the sequence's other rows take with it."""
        results = [computed[row] for row in step.sequence.rows]
        num_read = step.row.num_cached - step.row.num_virtual_tokens
        foretold = list(request.prompt_token_ids[num_read + 1 : num_read + 1 + step.num_new_tokens])
        num_top: int | None = request.sampling_params.logprobs or 0
        for start in range(0, len(foretold), PROMPT_LOGPROBS_AT_ONCE):
            piece = foretold[start : start + PROMPT_LOGPROBS_AT_ONCE]
            logits = mixed(step.sequence, [result.own[start : start + len(piece)] for result in results])
            tokens = own_logprobs(logits, piece, [num_top] * len(piece))
            step.sequence.prompt_logprobs += [token for token in tokens if token is not None]

    def _report(self, sequence: Sequence, choice: Choice) -> StepOutput:
        prompt_logprobs, sequence.prompt_logprobs = tuple(sequence.prompt_logprobs), []
        if choice.finish_reason is not None:
            self._forget(sequence)
        return StepOutput(
            request_id=sequence.request.request_id,
            new_token_ids=choice.token_ids,
            logprobs=choice.logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=choice.finish_reason,
            step=self._num_steps,
            first_step=sequence.first_step,
            admitted_at=sequence.admitted_at,
        )

    def _report_without_tokens(
        self,
        sequence: Sequence,
        reason: FinishReason | None = None,
        error: str | None = None,
        not_finite_row: int | None = None,
    ) -> StepOutput:
        return StepOutput(
            request_id=sequence.request.request_id,
            finish_reason=reason,
            error=error,
            not_finite_row=not_finite_row,
            step=self._num_steps,
            first_step=sequence.first_step,
            admitted_at=sequence.admitted_at,
        )

    def _fail(self, sequence: Sequence, reason: str, not_finite_row: int | None = None) -> Output:
        """End a sequence with an error, and leave nothing of it in its slots: they may hold non-finite numbers."""
        for slot in sequence.slots:
            self.cache.clear(slot)
        return self._end(sequence, FinishReason.ERROR, reason, not_finite_row)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str, not_finite_row: int | None = None) -> Output:
        """End a sequence that has no more tokens to say: it failed, or nobody waits for it."""
        self._forget(sequence)
        if isinstance(sequence.request, Compile):
            return Compiled(sequence.request.request_id, error=error, is_finite=not_finite_row is None)
        return self._report_without_tokens(sequence, reason, error, not_finite_row)

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request.request_id]

    def _stats(self, steps: list[RowStep], rows: tuple[StepRow, ...], seconds: float) -> StepStats:
        return StepStats(
            step=self._num_steps,
            rows=rows,
            num_distinct_prefixes=len({_prefix_revision(step.row) for step in steps}),
            num_waiting=self.num_waiting,
            num_free_slots=self.num_free_slots,
            seconds=seconds,
            num_tokens=self._num_tokens,
        )


def _tells_of_its_prompt(step: RowStep) -> bool:
    """Whether more is to be read from the step than the next token."""
    request = step.sequence.request
    if isinstance(request, Compile):
        return step.completes_row
    return request.sampling_params.prompt_logprobs and not step.is_decode


def _step_row(step: RowStep) -> StepRow:
    return StepRow(step.sequence.request.request_id, step.row.slot, step.num_new_tokens, step.is_decode)


def _held_by_constraints(steps: list[RowStep]) -> set[Sequence]:
    """The sequences that would choose a token now, but do not know yet which ones they may."""
    constrained = {
        step.sequence: step.sequence.constraint
        for step in steps
        if step.sequence.constraint is not None and step.completes_row
    }
    all_are = all(step.sequence in constrained for step in steps)
    if all_are and not any(constraint.is_ready for constraint in constrained.values()):
        next(iter(constrained.values())).wait(CONSTRAINTS_PATIENCE)
    return {sequence for sequence, constraint in constrained.items() if not constraint.is_ready}


def _prefix_revision(row: Row) -> str | None:
    return None if row.prefix is None else row.prefix.revision
