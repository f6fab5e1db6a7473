"""Runs one step's rows through the backbone.

Knows rows, token ids and logits. Knows nothing of requests that wait, of sampling or of finish rules.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from batching.attention import NewTokens, plan_attention
from batching.decode_graphs import DecodeGraphs, NextToken
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache
from batching.sequence import RowStep
from batching.types import Compile

# N new tokens of the step, R rows, M positions whose logits are wanted, C n_embd, V vocab_size


@dataclass(frozen=True, slots=True, eq=False)
class RowLogits:
    """One row's part of a step: `batch[start:end]` of the logits `[M, V]` that it shares with its mates.

    `is_finite`: whether all that the step computed for the row was. If so, so is what it wrote into its slot.
    """

    batch: Tensor
    start: int
    end: int
    is_finite: bool

    @property
    def own(self) -> Tensor:
        return self.batch[self.start : self.end]


class ModelRunner:
    def __init__(self, backbone: Backbone, cache: KVCache, decode_graphs: DecodeGraphs | None = None) -> None:
        """`decode_graphs`: what runs the steps in which every row computes one token, and wants its logits."""
        self._backbone = backbone
        self._cache = cache
        self._decode_graphs = decode_graphs

    def execute(self, steps: list[RowStep]) -> list[RowLogits]:
        """One forward pass; for each row the float32 logits of its last `num_logits` new tokens.

        Running the same rows again is harmless: the same entries are written at the same places.
        """
        if self._decode_graphs is not None and all(step.num_new_tokens == num_logits(step) == 1 for step in steps):
            return _decode(steps, self._decode_graphs)
        new_tokens = [NewTokens(step.row.slot, step.row.num_cached, step.num_new_tokens) for step in steps]
        plan = plan_attention(new_tokens, self._cache)
        hidden_states = self._backbone.forward(self._embed(steps), plan, self._cache)  # [N, C]

        ends: list[int] = []
        wanted: list[int] = []
        ranges: list[tuple[int, int]] = []
        for step in steps:
            ends.append(step.num_new_tokens + (ends[-1] if ends else 0))
            ranges.append((len(wanted), len(wanted) + num_logits(step)))
            wanted.extend(range(ends[-1] - num_logits(step), ends[-1]))
        logits = self._backbone.logits(_rows_of(hidden_states, wanted))  # [M, V]
        # What is not finite in a row reaches its last token; a sum is finite only if all its parts are.
        sums = torch.cat((_rows_of(hidden_states, [end - 1 for end in ends]).float().sum(dim=-1), logits.sum(dim=-1)))
        are_finite: list[bool] = sums.isfinite().tolist()
        return [
            RowLogits(logits, start, end, are_finite[i] and all(are_finite[len(steps) + start : len(steps) + end]))
            for i, (start, end) in enumerate(ranges)
        ]

    def _embed(self, steps: list[RowStep]) -> Tensor:
        """`[N, C]`: token embeddings, but a compiled prompt's own where it brings them."""
        token_ids: list[int] = []
        own: list[tuple[int, Tensor]] = []
        for step in steps:
            embeddings = step.sequence.request.embeddings if isinstance(step.sequence.request, Compile) else None
            if embeddings is None:
                token_ids.extend(step.sequence.pending_token_ids(step.row, step.num_new_tokens))
            else:
                start = step.row.num_cached
                own.append((len(token_ids), embeddings[start : start + step.num_new_tokens]))
                token_ids.extend([0] * step.num_new_tokens)
        x = self._backbone.embed(torch.tensor(token_ids, device=self._backbone.device))
        for start, embeddings in own:
            x[start : start + len(embeddings)] = embeddings
        return x


def _decode(steps: list[RowStep], graphs: DecodeGraphs) -> list[RowLogits]:
    logits, are_finite = graphs.run(
        [
            NextToken(step.row.slot, step.row.num_cached, step.sequence.pending_token_ids(step.row, 1)[0])
            for step in steps
        ]
    )
    return [RowLogits(logits, i, i + 1, is_finite) for i, is_finite in enumerate(are_finite)]


def _rows_of(x: Tensor, indices: list[int]) -> Tensor:
    """`x[indices]`, without a copy where that is all of it."""
    return x if len(indices) == len(x) else x[torch.tensor(indices, dtype=torch.int64, device=x.device)]


def num_logits(step: RowStep) -> int:
    """How many of a row's new tokens give logits: the last one if the row is complete then, all if the prompt's
    log-probabilities are wanted, else none.
    """
    request = step.sequence.request
    if isinstance(request, Compile):
        return 0
    if request.sampling_params.prompt_logprobs and not step.row.output_token_ids:
        return step.num_new_tokens
    return 1 if step.completes_row else 0
