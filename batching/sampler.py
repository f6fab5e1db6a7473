"""Chooses every row's next token from its logits, all rows in one call.

A row's choice is a function of its own logits, parameters, seed and token index alone. Knows slots and sampling
parameters. Knows nothing of the forward pass, beams or finish rules.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from batching.types import MAX_TOP_K, SamplingParams, TokenLogprob

# B rows, V vocab_size, K candidates

# top-k is at most MAX_TOP_K, and top-p looks no further unless a row's mass is spread wider: the 256 largest of
# 32 x 50,257 logits cost 5 ms on one core, a full sort 114.


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row that wants a token: its slot, what it asked for, and how many tokens it has said."""

    slot: int
    params: SamplingParams
    num_output_tokens: int


class Sampler:
    """Keeps, by slot, the row's uniform numbers and the tokens it has seen (for the repetition penalty)."""

    def __init__(
        self, num_slots: int, max_model_len: int, vocab_size: int, eos_token_id: int, device: torch.device
    ) -> None:
        self._eos_token_id = eos_token_id
        self._device = device
        self._uniforms = torch.zeros((num_slots, max_model_len), device=device)
        self._seen = torch.zeros((num_slots, vocab_size), dtype=torch.bool, device=device)

    def admit(self, slot: int, params: SamplingParams, prompt_token_ids: SequenceOf[int], seed: int) -> None:
        """Prepare a slot for its new owner; nothing of the former one remains."""
        if params.temperature > 0:
            self._uniforms[slot, : params.max_new_tokens] = torch.from_numpy(
                draw_uniforms(seed, params.choice, params.max_new_tokens)
            )
        if params.repetition_penalty != 1.0:
            self._seen[slot] = False
            self._seen[slot, torch.tensor(prompt_token_ids, device=self._device)] = True

    def copy(self, sources: list[int], targets: list[int]) -> None:
        """Let slots `targets` have seen what `sources` saw."""
        self._seen[targets] = self._seen[sources]

    def mark_seen(self, slots: list[int], token_ids: list[int]) -> None:
        self._seen[slots, token_ids] = True

    def sample(self, logits: Tensor, rows: list[SamplingRow]) -> list[int]:
        """`[B, V]` finite float32 logits -> B token ids."""
        scores = self.penalise(logits, rows)
        token_ids = scores.argmax(dim=-1)
        sampling = [i for i, row in enumerate(rows) if row.params.temperature > 0]
        if sampling:
            chosen = torch.tensor(sampling, device=self._device)
            token_ids[chosen] = self._draw(scores[chosen], [rows[i] for i in sampling])
        result: list[int] = token_ids.tolist()
        penalised = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
        if penalised:
            self.mark_seen([rows[i].slot for i in penalised], [result[i] for i in penalised])
        return result

    def penalise(self, logits: Tensor, rows: list[SamplingRow]) -> Tensor:
        """Apply repetition penalties (Keskar et al. 2019, as transformers does) and `min_new_tokens`; `[B, V]`."""
        scores = logits
        penalised = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
        if penalised:
            scores = scores.clone()
            chosen = torch.tensor(penalised, device=self._device)
            penalties = self._column([rows[i].params.repetition_penalty for i in penalised])  # [B, 1]
            seen = self._seen[[rows[i].slot for i in penalised]]
            own = scores[chosen]
            scores[chosen] = torch.where(seen, torch.where(own < 0, own * penalties, own / penalties), own)
        too_short = [i for i, row in enumerate(rows) if row.num_output_tokens < row.params.min_new_tokens]
        if too_short:
            scores = scores.clone() if scores is logits else scores
            scores[too_short, self._eos_token_id] = float("-inf")
        return scores

    def _draw(self, scores: Tensor, rows: list[SamplingRow]) -> Tensor:
        """Sample B rows `[B, V]`: those that keep the whole vocabulary take another way than those that truncate it."""
        scores = scores / self._column([row.params.temperature for row in rows])
        uniforms = self._uniforms[[row.slot for row in rows], [row.num_output_tokens for row in rows]][
            :, None
        ]  # [B, 1]
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        truncating = [i for i, row in enumerate(rows) if row.params.top_k or row.params.top_p < 1.0]
        plain = [i for i in range(len(rows)) if i not in set(truncating)]
        if plain:
            token_ids[plain] = _invert_cdf(scores[plain].softmax(dim=-1), uniforms[plain])
        if truncating:
            token_ids[truncating] = self._draw_truncated(
                scores[truncating], [rows[i] for i in truncating], uniforms[truncating]
            )
        return token_ids

    def _draw_truncated(self, scores: Tensor, rows: list[SamplingRow], uniforms: Tensor) -> Tensor:
        num_candidates = min(MAX_TOP_K, scores.shape[1])
        top_scores, top_ids = scores.topk(num_candidates, dim=-1)  # [B, K], best first
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=self._device)

        top_ks = self._column([row.params.top_k or num_candidates for row in rows])
        ranks = torch.arange(num_candidates, device=self._device)
        kept_scores = top_scores.masked_fill(ranks >= top_ks, float("-inf"))
        # Without top-k the mass is that of the whole vocabulary; with it, that of the k kept (transformers' order).
        has_top_k = torch.tensor([row.params.top_k > 0 for row in rows], device=self._device)
        log_mass = torch.where(has_top_k, kept_scores.logsumexp(dim=-1), scores.logsumexp(dim=-1))
        probs = (kept_scores - log_mass[:, None]).exp()  # [B, K]
        top_ps = self._column([row.params.top_p for row in rows])
        picks = _invert_cdf(_nucleus(probs, top_ps), uniforms)
        token_ids.copy_(top_ids.gather(1, picks[:, None])[:, 0])

        spread = ~has_top_k & (probs.sum(dim=-1) < top_ps[:, 0])
        for i in spread.nonzero()[:, 0].tolist():  # the nucleus is wider than the candidates: the exact, slow way
            sorted_scores, sorted_ids = scores[i].sort(descending=True)
            pick = _invert_cdf(_nucleus(sorted_scores.softmax(dim=-1)[None], top_ps[i : i + 1]), uniforms[i : i + 1])
            token_ids[i] = sorted_ids[pick[0]]
        return token_ids

    def _column(self, numbers: list[float]) -> Tensor:
        """B numbers as `[B, 1]` float32."""
        return torch.tensor(numbers, dtype=torch.float32, device=self._device)[:, None]


def draw_uniforms(seed: int, choice: int, num_tokens: int) -> np.ndarray:
    """The row's random stream, `[num_tokens]` float32 in [0, 1]: a function of seed, choice and token index alone."""
    key = np.array([seed, choice], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(num_tokens).astype(np.float32)


def _nucleus(probs: Tensor, top_ps: Tensor) -> Tensor:
    """Zero `probs` `[B, K]`, best first, after the smallest set whose mass reaches top-p (Holtzman et al. 2020)."""
    mass_before = probs.cumsum(dim=-1) - probs
    return probs.masked_fill((mass_before >= top_ps) & (mass_before > 0), 0.0)


def _invert_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first kept index of each row at which the running sum reaches the row's share of its own total; `[B]`.

    `probs` `[B, K]` need not sum to one; `uniforms` `[B, 1]`. Where rounding leaves none, the last kept index.
    """
    cumulative = probs.cumsum(dim=-1)
    targets = uniforms * cumulative[:, -1:]
    picks = torch.searchsorted(cumulative, targets)[:, 0]
    # A target of exactly 0 would find a first token of no mass; one past the end finds none.
    is_kept = probs > 0
    first_kept = is_kept.int().argmax(dim=-1)
    last_kept = probs.shape[1] - 1 - is_kept.flip(-1).int().argmax(dim=-1)
    return picks.clamp(first_kept, last_kept)


def own_logprobs(logits: Tensor, token_ids: list[int], num_top: list[int | None]) -> list[TokenLogprob | None]:
    """The model's own log-probabilities of `token_ids` under `[B, V]` logits, each with its `num_top` likeliest tokens.

    None in `num_top`: nothing is wanted of that row.
    """
    results: list[TokenLogprob | None] = [None] * len(token_ids)
    wanted = [i for i, count in enumerate(num_top) if count is not None]
    if not wanted:
        return results
    logprobs = logits[wanted].log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor([token_ids[i] for i in wanted], device=logits.device)[:, None])[:, 0]
    top = logprobs.topk(max(num_top[i] or 0 for i in wanted), dim=-1)
    for i, logprob, ids, values in zip(wanted, chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True):
        pairs = tuple(zip(ids, values, strict=True))
        results[i] = TokenLogprob(token_ids[i], logprob, pairs[: num_top[i]])
    return results
