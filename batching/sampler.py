"""Chooses every row's next token from its logits, all rows in one call.

A row's choice is a function of its own logits, parameters, seed and tokens alone: nothing is kept from one call to the
next. Knows nothing of slots, the forward pass, beams or finish rules.
"""

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batching.kernels import argmax, logsumexp, restrict, topk
from batching.types import MAX_TOP_K, SamplingParams, TokenLogprob

# B rows, V vocab_size, K candidates

# As far as float32 carries: below, a division overflows; above, it rounds every difference to nothing.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
# A uniform of exactly 0 would find a first token of no mass.
MIN_UNIFORM = 2.0**-60
ALL_ALLOWED = np.uint8(255)  # eight tokens' bits


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row that wants a token: what it asked for, and how many tokens it has said.

    `uniform`: its random number for this token. `seen_token_ids`: prompt and output, for the repetition penalty.
    `allowed` `[ceil(V / 8)]`: the bits of the tokens that its constraint allows, the lowest of a byte first; None for a
    row without one.
    """

    params: SamplingParams
    num_output_tokens: int
    uniform: float = 0.0
    seen_token_ids: SequenceOf[int] = ()
    allowed: npt.NDArray[np.uint8] | None = None


def draw_uniforms(seed: int, choice: int, num_tokens: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """A row's random stream, `[num_tokens]` in [0, 1): a function of seed, choice and token index alone."""
    key = np.array([seed, choice], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(num_tokens)


def sample(logits: Tensor, rows: list[SamplingRow], eos_token_id: int) -> list[int]:
    """`[B, V]` finite float32 logits -> B token ids. Greedy rows take the largest, the others draw."""
    token_ids: list[int] = argmax(logits).tolist()
    # Most rows are done: a greedy one without a penalty or a constraint keeps its largest, unless that is an end that
    # comes too early.
    others = [
        i
        for i, row in enumerate(rows)
        if row.params.temperature > 0
        or row.params.repetition_penalty != 1.0
        or row.allowed is not None
        or (token_ids[i] == eos_token_id and row.num_output_tokens < row.params.min_new_tokens)
    ]
    if others:
        other_rows = [rows[i] for i in others]
        scores = penalise(logits if len(others) == len(rows) else logits[others], other_rows, eos_token_id)
        scores = _constrain(scores, other_rows)
        for i, token_id in zip(others, _choose(scores, other_rows), strict=True):
            token_ids[i] = token_id
    return token_ids


def _choose(scores: Tensor, rows: list[SamplingRow]) -> list[int]:
    """B token ids from scores `[B, V]` to which every penalty and constraint has been applied.

    Rows that draw from the whole vocabulary take another way than those that truncate it.
    """
    greedy: list[int] = []
    plain: list[int] = []
    truncating: list[int] = []
    for i, row in enumerate(rows):
        does_truncate = row.params.top_k > 0 or np.float32(row.params.top_p) < 1
        (greedy if row.params.temperature == 0 else truncating if does_truncate else plain).append(i)
    token_ids = [0] * len(rows)
    for chosen, choose in ((greedy, _take_largest), (plain, _draw), (truncating, _draw_truncated)):
        if chosen:
            own = scores if len(chosen) == len(rows) else scores[chosen]
            for i, token_id in zip(chosen, choose(own, [rows[i] for i in chosen]).tolist(), strict=True):
                token_ids[i] = token_id
    return token_ids


def _take_largest(scores: Tensor, rows: list[SamplingRow]) -> Tensor:
    return argmax(scores)


def penalise(logits: Tensor, rows: list[SamplingRow], eos_token_id: int) -> Tensor:
    """Apply repetition penalties (Keskar et al. 2019, as transformers does) and `min_new_tokens`; `[B, V]`."""
    penalised = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
    too_short = [i for i, row in enumerate(rows) if row.num_output_tokens < row.params.min_new_tokens]
    if not penalised and not too_short:
        return logits
    scores = logits.clone()
    if penalised:
        penalties = _column([rows[i].params.repetition_penalty for i in penalised], logits.device)  # [B, 1]
        seen = _padded([rows[i].seen_token_ids for i in penalised], logits.device)  # [B, L]
        own = torch.tensor(penalised, device=logits.device)[:, None]  # [B, 1]
        seen_scores = logits[own, seen]
        scores[own, seen] = torch.where(seen_scores < 0, seen_scores * penalties, seen_scores / penalties)
    if too_short:
        scores[too_short, eos_token_id] = float("-inf")
    return scores


def _constrain(scores: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Leave each row of `[B, V]` what its constraint allows; `scores` itself is not changed."""
    if all(row.allowed is None for row in rows):
        return scores
    allowed = np.full((len(rows), (scores.shape[1] + 7) // 8), ALL_ALLOWED)
    for i, row in enumerate(rows):
        if row.allowed is not None:
            allowed[i] = row.allowed
    return restrict(scores, torch.from_numpy(allowed).to(scores.device))


def _draw(scores: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Draw from the whole of `[B, V]`; `[B]`."""
    scores = _at_temperature(scores, scores.amax(dim=-1, keepdim=True), rows)
    return _invert_cdf(scores.softmax(dim=-1), _uniforms(rows, scores.device))


def _draw_truncated(scores: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Top-k, then top-p, as transformers' warpers do, but that exactly k are kept where some are equal; `[B]`.

    top-k is at most MAX_TOP_K, and top-p looks no further unless a row's mass is spread wider: a full sort of
    32 x 50,257 logits costs 114 ms on one core.
    """
    has_all_top_k = all(row.params.top_k > 0 for row in rows)
    num_candidates = min(max(row.params.top_k for row in rows) if has_all_top_k else MAX_TOP_K, scores.shape[1])
    top_scores, top_ids = topk(scores, num_candidates)  # [B, K], best first
    largest = top_scores[:, :1]
    top_ks = _column([row.params.top_k or num_candidates for row in rows], scores.device)
    ranks = torch.arange(num_candidates, device=scores.device)
    kept_scores = _at_temperature(top_scores, largest, rows).masked_fill_(ranks >= top_ks, float("-inf"))
    log_mass = kept_scores.exp().cumsum(dim=-1)[:, -1].log()  # in order, so that what others' top-k adds changes no bit
    if not has_all_top_k:  # without top-k the mass is that of the whole vocabulary
        has_top_k = torch.tensor([row.params.top_k > 0 for row in rows], device=scores.device)
        scaled = _at_temperature(scores, largest, rows)
        log_mass = torch.where(has_top_k, log_mass, logsumexp(scaled))
    probs = (kept_scores - log_mass[:, None]).exp()  # [B, K]
    top_ps, uniforms = _column([row.params.top_p for row in rows], scores.device), _uniforms(rows, scores.device)
    picks = _invert_cdf(_nucleus(probs, top_ps), uniforms)
    token_ids = top_ids.gather(1, picks[:, None])[:, 0]
    if has_all_top_k:
        return token_ids

    is_spread = ~has_top_k & (probs.sum(dim=-1) < top_ps[:, 0])
    for i in is_spread.nonzero()[:, 0].tolist():  # the nucleus is wider than the candidates: the exact, slow way
        sorted_scores, sorted_ids = scaled[i].sort(descending=True)
        pick = _invert_cdf(_nucleus(sorted_scores.softmax(dim=-1)[None], top_ps[i : i + 1]), uniforms[i : i + 1])
        token_ids[i] = sorted_ids[pick[0]]
    return token_ids


def _at_temperature(scores: Tensor, largest: Tensor, rows: list[SamplingRow]) -> Tensor:
    """`[B, …]` with each row's largest `[B, 1]` at 0."""
    temperatures = [min(max(row.params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE) for row in rows]
    return (scores - largest).div_(_column(temperatures, scores.device))


def _uniforms(rows: list[SamplingRow], device: torch.device) -> Tensor:
    return _column([row.uniform for row in rows], device)  # [B, 1]


def _nucleus(probs: Tensor, top_ps: Tensor) -> Tensor:
    """Zero `probs` `[B, K]`, best first, after the smallest set whose mass reaches top-p (Holtzman et al. 2020)."""
    mass_before = probs.cumsum(dim=-1) - probs
    return probs.masked_fill((mass_before >= top_ps) & (mass_before > 0), 0.0)


def _invert_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first index of each row at which the running sum reaches the row's share of its own total; `[B]`.

    `probs` `[B, K]` need not sum to one; `uniforms` `[B, 1]` up to 1, which finds the last index of any mass.
    """
    cumulative = probs.cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniforms.clamp(min=MIN_UNIFORM) * cumulative[:, -1:])[:, 0]


def mixture(logits: Tensor, weights: SequenceOf[float]) -> Tensor:
    """The logarithm of the weighted mean of M rows' next-token distributions: logits `[M, …, V]` -> `[…, V]`."""
    log_total = math.log(sum(weights))
    log_weights = torch.tensor([math.log(weight) - log_total for weight in weights], device=logits.device)
    log_probs = logits.log_softmax(dim=-1) + log_weights.view(-1, *[1] * (logits.dim() - 1))
    return log_probs.logsumexp(dim=0)


def own_logprobs(logits: Tensor, token_ids: list[int], num_top: list[int | None]) -> list[TokenLogprob | None]:
    """The model's own log-probabilities of `token_ids` under `[B, V]` logits, each with its `num_top` likeliest tokens.

    None in `num_top`: nothing is wanted of that row.
    """
    results: list[TokenLogprob | None] = [None] * len(token_ids)
    wanted = [i for i, count in enumerate(num_top) if count is not None]
    if not wanted:
        return results
    own = logits if len(wanted) == len(logits) else logits[wanted]
    log_mass = logsumexp(own)[:, None]  # [B, 1]
    chosen = own.gather(1, torch.tensor([token_ids[i] for i in wanted], device=logits.device)[:, None]) - log_mass
    tops = top_tokens(own, max(num_top[i] or 0 for i in wanted), log_mass)
    for i, (logprob,), top in zip(wanted, chosen.tolist(), tops, strict=True):
        results[i] = TokenLogprob(token_ids[i], logprob, top[: num_top[i]])
    return results


def top_tokens(scores: Tensor, count: int, log_mass: Tensor | float = 0.0) -> list[tuple[tuple[int, float], ...]]:
    """The `count` likeliest tokens of each row of `[B, V]`, as (token id, log-probability), the likeliest first.

    `scores` are log-probabilities, or logits whose exponentials sum up to that of `log_mass` `[B, 1]`.
    """
    if count == 0:
        return [()] * len(scores)
    values, indices = topk(scores, min(count, scores.shape[1]))
    logprobs = (values - log_mass).tolist()
    return [tuple(zip(*row, strict=True)) for row in zip(indices.tolist(), logprobs, strict=True)]


def _column(numbers: list[float], device: torch.device) -> Tensor:
    """B numbers as `[B, 1]` float32."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None]


def _padded(rows: list[SequenceOf[int]], device: torch.device) -> Tensor:
    """B lists of ids as `[B, L]`, each filled up with its own first one."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows], device=device)
