"""The engine: requests in, one forward pass at a time, what each pass did out.

All that the server sees of batching. Used from one thread; only `check` may be called from another. Knows nothing of
asyncio, HTTP or text.
"""

import logging
import secrets
import time

import torch
from torch import Tensor

from batching.beams import BeamSearch, Branch
from batching.fairness import FairShare
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache, choose_num_slots
from batching.model_runner import ModelRunner, num_logits
from batching.sampler import Sampler, SamplingRow, own_logprobs
from batching.scheduler import Scheduler
from batching.sequence import Row, RowStep, Sequence
from batching.types import (
    Compile,
    Compiled,
    ContextTooLong,
    FinishReason,
    Request,
    RequestError,
    SamplingParams,
    StepOutput,
    StepStats,
    TokenLogprob,
)

logger = logging.getLogger(__name__)

# What a step has to say of one request
Output = StepOutput | Compiled


class Engine:
    def __init__(
        self,
        backbone: Backbone,
        max_num_seqs: int | None = None,
        max_model_len: int | None = None,
        has_reserve: bool = False,
    ) -> None:
        """Allocate the slots. `max_num_seqs` defaults to what fits in free memory, at most 64.

        `has_reserve`: an eighth of the slots is never given to a tenant that holds its share already.
        """
        self.backbone = backbone
        self.max_model_len = backbone.shape.n_positions if max_model_len is None else max_model_len
        if not 1 <= self.max_model_len <= backbone.shape.n_positions:
            raise ValueError(f"max_model_len is {max_model_len}; expected 1 to {backbone.shape.n_positions}")
        dtype, device = backbone.dtype, backbone.device
        self.max_num_seqs = choose_num_slots(max_num_seqs, backbone.shape, self.max_model_len, dtype, device)
        self.cache = KVCache(backbone.shape, self.max_num_seqs, self.max_model_len, dtype, device)
        self._runner = ModelRunner(backbone, self.cache)
        num_reserved_slots = self.max_num_seqs // 8 if has_reserve else 0
        self._scheduler = Scheduler(self.cache, FairShare(self.max_num_seqs, num_reserved_slots))
        self._sampler = Sampler(
            self.max_num_seqs, self.max_model_len, backbone.vocab_size, backbone.eos_token_id, device
        )
        self._sequences: dict[str, Sequence] = {}
        self._aborted: list[Output] = []
        self._num_steps = 0
        self.last_step: StepStats | None = None

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

    def check(self, request: Request | Compile) -> None:
        """Raise `RequestError` if the request can never be served. Pure, so that it may run before queueing."""
        sequence = Sequence(request)
        if sequence.num_prompt_tokens == 0:
            raise RequestError("the prompt has no tokens; feed the end-of-text token in its place")
        if sequence.num_slots_needed > self.max_num_seqs:
            raise RequestError(f"num_beams is {sequence.num_slots_needed}; the server has {self.max_num_seqs} slots")
        max_new_tokens = request.sampling_params.max_new_tokens if isinstance(request, Request) else 0
        num_tokens = sequence.num_virtual_tokens + sequence.num_prompt_tokens + max_new_tokens
        if num_tokens > self.max_model_len:
            raise ContextTooLong(num_tokens, self.max_model_len)
        token_ids = request.prompt_token_ids if isinstance(request, Request) else request.token_ids or ()
        if not all(0 <= token_id < self.backbone.vocab_size for token_id in token_ids):
            raise RequestError(f"a token id is outside the vocabulary of {self.backbone.vocab_size}")

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
            self._aborted.append(self._end(sequence, FinishReason.ABORT, "aborted"))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one forward pass and report what it did for each request that it held."""
        started_at = time.monotonic()
        outputs, self._aborted = self._aborted, []
        for sequence in self._scheduler.admit():
            self._prepare(sequence)
        steps = self._scheduler.schedule()
        if not steps:
            return outputs
        self._num_steps += 1
        for step in steps:
            step.sequence.first_step = step.sequence.first_step or self._num_steps
        outputs += self._commit(*self._execute(steps))
        self.last_step = self._stats(steps, time.monotonic() - started_at)
        return outputs

    def _prepare(self, sequence: Sequence) -> None:
        """Fill an admitted sequence's first slot. From here on the engine does not know that tasks exist."""
        sequence.admitted_at = time.monotonic()
        request = sequence.request
        if isinstance(request, Compile):
            return
        params = request.sampling_params
        slot = sequence.slots[0]
        if request.prefix is not None:
            self.cache.write_prefix(slot, request.prefix.past_key_values)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self._sampler.admit(slot, params, request.prompt_token_ids, seed)
        if params.num_beams > 1:
            sequence.beams = BeamSearch(
                num_beams=params.num_beams,
                length_penalty=params.length_penalty,
                early_stopping=params.early_stopping,
                max_new_tokens=params.max_new_tokens,
                eos_token_id=self.backbone.eos_token_id,
            )

    def _execute(self, steps: list[RowStep]) -> tuple[list[RowStep], Tensor, list[tuple[RowStep, str]]]:
        """Run the rows; if that raises, run them in halves, so that only the culprit fails.

        Returns the rows that ran, their logits `[M, V]`, and those that failed with the reason. Rows can be run again
        at will: a pass rewrites the same entries.
        """
        try:
            return steps, self._runner.execute(steps), []
        except Exception as error:
            if len(steps) == 1:
                logger.exception("the forward pass failed for request %s", steps[0].sequence.request.request_id)
                no_logits = torch.empty((0, self.backbone.vocab_size), device=self.backbone.device)
                return [], no_logits, [(steps[0], f"{type(error).__name__}: {error}")]
            middle = len(steps) // 2
            first, second = self._execute(steps[:middle]), self._execute(steps[middle:])
            return first[0] + second[0], torch.cat((first[1], second[1])), first[2] + second[2]

    def _commit(self, steps: list[RowStep], logits: Tensor, failures: list[tuple[RowStep, str]]) -> list[Output]:
        """Advance every row by what was computed, and choose the next token of those that have read all they know."""
        outputs: list[Output] = []
        for step, reason in failures:
            if step.sequence.request.request_id in self._sequences:  # else another of its beams has failed too
                outputs.append(self._end(step.sequence, FinishReason.ERROR, reason))
        are_finite = logits.sum(dim=-1).isfinite().tolist()  # a sum is finite only if all that it adds up is
        completed: dict[Row, int] = {}  # where the row's last logits are
        end = 0
        for step in steps:
            start, end = end, end + num_logits(step)
            sequence = step.sequence
            if sequence.request.request_id not in self._sequences:
                continue
            if not all(are_finite[start:end]):
                sequence.is_poisoned = True
                outputs.append(self._end(sequence, FinishReason.ERROR, "the model's logits are not finite numbers"))
                continue
            completes_row = step.completes_row
            self._read_prompt_logprobs(step, logits[start:end])
            step.row.num_cached += step.num_new_tokens
            if completes_row and isinstance(sequence.request, Compile):
                outputs.append(self._answer_compile(sequence))
            elif completes_row:
                completed[step.row] = end - 1
        return outputs + self._choose_tokens(steps, logits, completed)

    def _choose_tokens(self, steps: list[RowStep], logits: Tensor, completed: dict[Row, int]) -> list[Output]:
        outputs: list[Output] = []
        sampling: list[Sequence] = []
        for sequence in dict.fromkeys(step.sequence for step in steps):
            if sequence.request.request_id not in self._sequences or sequence.rows[0] not in completed:
                continue
            if sequence.beams is None:
                sampling.append(sequence)
            else:
                own = [completed[row] for row in sequence.rows]
                outputs += self._search(sequence, sequence.beams, logits[own])
        if sampling:
            own = [completed[sequence.rows[0]] for sequence in sampling]
            outputs += self._sample(sampling, logits if len(own) == len(logits) else logits[own])
        return outputs

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[StepOutput]:
        """Choose the next token of each sequence from its logits `[B, V]`."""
        rows = [_sampling_row(sequence, sequence.rows[0]) for sequence in sequences]
        token_ids = self._sampler.sample(logits, rows)
        num_top = [row.params.logprobs for row in rows]
        tokens = own_logprobs(logits, token_ids, num_top)
        outputs = []
        for sequence, token_id, token in zip(sequences, token_ids, tokens, strict=True):
            output_token_ids = sequence.rows[0].output_token_ids
            output_token_ids.append(token_id)
            self._scheduler.charge(sequence, 1)
            reason = None
            if token_id == self.backbone.eos_token_id:
                reason = FinishReason.STOP
            elif len(output_token_ids) == _params(sequence).max_new_tokens:
                reason = FinishReason.LENGTH
            outputs.append(self._report(sequence, (token_id,), () if token is None else (token,), reason))
        return outputs

    def _search(self, sequence: Sequence, beams: BeamSearch, logits: Tensor) -> list[StepOutput]:
        """Take one step of a beam search over its rows' logits `[B, V]`."""
        log_probs = logits.log_softmax(dim=-1)
        rows = [_sampling_row(sequence, row) for row in sequence.rows]
        branches = beams.advance(
            self._sampler.penalise(log_probs, rows), log_probs, [row.logprobs for row in sequence.rows]
        )
        self._scheduler.charge(sequence, len(rows))
        if not beams.is_done:
            self._branch(sequence, branches)
            return []
        tokens = beams.finished[0].tokens
        token_ids = tuple(token.token_id for token in tokens)
        has_stopped = token_ids[-1] == self.backbone.eos_token_id
        logprobs = () if _params(sequence).logprobs is None else tokens
        return [self._report(sequence, token_ids, logprobs, FinishReason.STOP if has_stopped else FinishReason.LENGTH)]

    def _branch(self, sequence: Sequence, branches: list[Branch]) -> None:
        """Give each running hypothesis a slot that holds what its parent's held; a first child stays where it is."""
        parents = [sequence.rows[branch.parent] for branch in branches]
        staying: dict[int, Row] = {}
        for i, parent in enumerate(parents):
            if parent not in staying.values():
                staying[i] = parent
        taken = {row.slot for row in staying.values()}
        free_slots = [slot for slot in sequence.slots if slot not in taken]
        slots = [staying[i].slot if i in staying else free_slots.pop() for i in range(len(branches))]

        moved = [i for i in range(len(branches)) if i not in staying]
        if moved:
            sources, targets = [parents[i].slot for i in moved], [slots[i] for i in moved]
            self.cache.copy(sources, targets, parents[0].num_cached)
            self._sampler.copy(sources, targets)
        self._sampler.mark_seen(slots, [branch.token.token_id for branch in branches])
        sequence.rows = [
            Row(
                slot,
                parent.num_cached,
                [*parent.output_token_ids, branch.token.token_id],
                [*parent.logprobs, branch.token],
            )
            for slot, parent, branch in zip(slots, parents, branches, strict=True)
        ]

    def _read_prompt_logprobs(self, step: RowStep, logits: Tensor) -> None:
        """Keep the log-probability of each prompt token that the step's logits foretell."""
        request = step.sequence.request
        if not (isinstance(request, Request) and request.sampling_params.prompt_logprobs):
            return
        num_read = step.row.num_cached - step.sequence.num_virtual_tokens
        foretold = list(request.prompt_token_ids[num_read + 1 : num_read + 1 + step.num_new_tokens])
        if foretold:
            num_top = request.sampling_params.logprobs or 0
            tokens = own_logprobs(logits[: len(foretold)], foretold, [num_top] * len(foretold))
            step.sequence.prompt_logprobs += [token for token in tokens if token is not None]

    def _answer_compile(self, sequence: Sequence) -> Compiled:
        past_key_values = self.cache.read(sequence.slots[0], sequence.num_prompt_tokens)
        self._forget(sequence)
        return Compiled(sequence.request.request_id, past_key_values)

    def _report(
        self,
        sequence: Sequence,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...],
        reason: FinishReason | None,
    ) -> StepOutput:
        prompt_logprobs, sequence.prompt_logprobs = tuple(sequence.prompt_logprobs), []
        if reason is not None:
            self._forget(sequence)
        return StepOutput(
            request_id=sequence.request.request_id,
            new_token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            step=self._num_steps,
            first_step=sequence.first_step,
            admitted_at=sequence.admitted_at,
        )

    def _end(self, sequence: Sequence, reason: FinishReason, error: str) -> Output:
        """End a sequence that has no more tokens to say: it failed, or nobody waits for it."""
        self._forget(sequence)
        if isinstance(sequence.request, Compile):
            return Compiled(sequence.request.request_id, error=error)
        return StepOutput(
            request_id=sequence.request.request_id,
            finish_reason=reason,
            error=error,
            step=self._num_steps,
            first_step=sequence.first_step,
            admitted_at=sequence.admitted_at,
        )

    def _forget(self, sequence: Sequence) -> None:
        if sequence.is_poisoned:
            for slot in sequence.slots:
                self.cache.clear(slot)
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request.request_id]

    def _stats(self, steps: list[RowStep], seconds: float) -> StepStats:
        num_decode_tokens = sum(step.is_decode for step in steps)
        return StepStats(
            step=self._num_steps,
            num_rows=len(steps),
            num_distinct_prefixes=len({_prefix_revision(step.sequence) for step in steps}),
            num_prefill_tokens=sum(step.num_new_tokens for step in steps) - num_decode_tokens,
            num_decode_tokens=num_decode_tokens,
            num_waiting=self.num_waiting,
            num_free_slots=self.num_free_slots,
            seconds=seconds,
        )


def _params(sequence: Sequence) -> SamplingParams:
    assert isinstance(sequence.request, Request)
    return sequence.request.sampling_params


def _sampling_row(sequence: Sequence, row: Row) -> SamplingRow:
    return SamplingRow(row.slot, _params(sequence), len(row.output_token_ids))


def _prefix_revision(sequence: Sequence) -> str | None:
    request = sequence.request
    return request.prefix.revision if isinstance(request, Request) and request.prefix is not None else None
