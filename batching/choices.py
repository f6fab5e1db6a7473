"""Chooses the next token of every sequence that a step has completed: of all that sample in one call, a mixture's rows
as one; of each beam search by itself.

Knows rows, their logits and when they end. Knows nothing of tenants' accounts or of what is told to the server.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from batching.branching import branch_rows
from batching.containment import Failure, run_contained
from batching.kv_cache import KVCache
from batching.model_runner import RowLogits
from batching.sampler import SamplingRow, mixture, own_logprobs, penalise, sample
from batching.sequence import Row, Sequence
from batching.types import FinishReason, Request, SamplingParams, TokenLogprob

# B rows, V vocab_size


@dataclass(frozen=True, slots=True)
class Choice:
    """What a sequence says after a step, and the `num_tokens` that this costs. A beam search says all at its end."""

    num_tokens: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class TokenChooser:
    def __init__(self, eos_token_id: int, cache: KVCache) -> None:
        """`cache` is where a beam search's branches are copied from slot to slot."""
        self._eos_token_id = eos_token_id
        self._cache = cache

    def choose(self, sequences: list[Sequence], completed: dict[Row, RowLogits]) -> list[Choice | Failure]:
        """The next token of each sequence, whose rows are all in `completed`; where choosing raises, of all others."""
        sampling = [sequence for sequence in sequences if sequence.beams is None]
        searching = [sequence for sequence in sequences if sequence.beams is not None]

        def sample_all(sequences: list[Sequence]) -> list[Choice]:
            return self._sample(sequences, _next_logits(sequences, completed))

        def search_all(sequences: list[Sequence]) -> list[Choice]:
            return [
                self._search(sequence, _last_logits([completed[row] for row in sequence.rows]))
                for sequence in sequences
            ]

        sampled = run_contained(sample_all, sampling)
        choices = dict(zip(sampling, sampled, strict=True))
        # One by one: what has taken its step cannot be run again.
        for sequence in searching:
            (choices[sequence],) = run_contained(search_all, [sequence])
        for sequence in sampling:
            choice = choices[sequence]
            if sequence.constraint is not None and isinstance(choice, Choice) and choice.finish_reason is None:
                (followed,) = run_contained(_follow_all, [sequence])
                choices[sequence] = followed or choice
        return [choices[sequence] for sequence in sequences]

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> list[Choice]:
        """Choose the next token of each sequence from its logits `[B, V]`."""
        rows = [_sampling_row(sequence, sequence.rows[0]) for sequence in sequences]
        token_ids = sample(logits, rows, self._eos_token_id)
        tokens = own_logprobs(logits, token_ids, [row.params.logprobs for row in rows])
        choices = []
        for sequence, token_id, token in zip(sequences, token_ids, tokens, strict=True):
            for row in sequence.rows:
                row.output_token_ids.append(token_id)
            reason = None
            if token_id == self._eos_token_id:
                reason = FinishReason.STOP
            elif len(sequence.rows[0].output_token_ids) == _params(sequence).max_new_tokens:
                reason = FinishReason.LENGTH
            choices.append(Choice(len(sequence.rows), (token_id,), () if token is None else (token,), reason))
        return choices

    def _search(self, sequence: Sequence, logits: Tensor) -> Choice:
        """Take one step of a beam search over its rows' logits `[B, V]`."""
        beams = sequence.beams
        assert beams is not None
        own = logits.log_softmax(dim=-1)
        rows = [_sampling_row(sequence, row) for row in sequence.rows]
        log_probs = penalise(own, rows, self._eos_token_id)
        num_logprobs = _params(sequence).logprobs
        branches = beams.advance(log_probs, own, [row.logprobs for row in sequence.rows], num_logprobs or 0)
        if not beams.is_done:
            branch_rows(sequence, branches, self._cache)
            return Choice(len(rows))
        tokens = beams.finished[0].tokens
        token_ids = tuple(token.token_id for token in tokens)
        has_stopped = token_ids[-1] == self._eos_token_id
        reason = FinishReason.STOP if has_stopped else FinishReason.LENGTH
        return Choice(len(rows), token_ids, () if num_logprobs is None else tokens, reason)


def mixed(sequence: Sequence, logits: list[Tensor]) -> Tensor:
    """What the sequence's next token is chosen from: its one row's logits `[…, V]`, or the mixture of its rows'."""
    if len(logits) == 1:
        return logits[0]
    assert isinstance(sequence.request, Request)
    return mixture(torch.stack(logits), [part.weight for part in sequence.request.mix])


def _follow_all(sequences: list[Sequence]) -> list[None]:
    """Tell constraints what their sequences have just said."""
    for sequence in sequences:
        assert sequence.constraint is not None
        sequence.constraint.follow(sequence.rows[0].output_token_ids)
    return [None] * len(sequences)


def _params(sequence: Sequence) -> SamplingParams:
    assert isinstance(sequence.request, Request)
    return sequence.request.sampling_params


def _sampling_row(sequence: Sequence, row: Row) -> SamplingRow:
    request = sequence.request
    assert isinstance(request, Request)
    num_output_tokens = len(row.output_token_ids)
    uniform = sequence.uniforms[num_output_tokens] if sequence.uniforms else 0.0
    has_penalty = request.sampling_params.repetition_penalty != 1.0
    seen = (*request.prompt_token_ids, *row.output_token_ids) if has_penalty else ()
    allowed = None if sequence.constraint is None else sequence.constraint.allowed()
    return SamplingRow(request.sampling_params, num_output_tokens, uniform, seen, allowed)


def _next_logits(sequences: list[Sequence], completed: dict[Row, RowLogits]) -> Tensor:
    """`[B, V]`, one row for each sequence."""
    if all(len(sequence.rows) == 1 for sequence in sequences):
        return _last_logits([completed[sequence.rows[0]] for sequence in sequences])
    return torch.stack([mixed(sequence, [completed[row].own[-1] for row in sequence.rows]) for sequence in sequences])


def _last_logits(results: list[RowLogits]) -> Tensor:
    """Each row's logits after its last token, `[B, V]`; no copy in the common step, whose rows have nothing else."""
    batch = results[0].batch
    if any(result.batch is not batch for result in results):
        return torch.stack([result.own[-1] for result in results])
    last = [result.end - 1 for result in results]
    return batch if last == list(range(len(batch))) else batch[last]
