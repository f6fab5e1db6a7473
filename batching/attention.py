"""Attention of a step's new tokens over the slots of their own rows.

A step's tokens lie flat, `[N]`, row after row. A plan says once per step which tokens read which slots, and all layers
follow it. Nothing is stacked or gathered: slots are read in place. Where `kernels` has code for the cache, each row is
read by itself, to its own length; elsewhere torch reads spans of neighbouring slots as views. Steps of `decode_graphs`
have a plan whose shapes do not depend on the rows.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from batching import kernels
from batching.kv_cache import KVCache

# A long row makes the short ones of its span pay for its length. Up to this many positions a row that costs less than a
# further span, whose few small operations take about as long as one row's attention over a hundred positions.
MAX_PADDING = 64

# N new tokens of the step, B rows of a span, T new tokens of each of them, S cache positions, H heads, D head_dim


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Where one row's new tokens go: positions `start` to `start + num_tokens` of `slot`."""

    slot: int
    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Tokens `first_token` onwards, B * T of them, belong to slots `first_slot` to `first_slot + B`, T each."""

    first_token: int
    first_slot: int
    num_rows: int
    num_tokens: int
    is_later: Tensor  # [B, 1, T, S], True where a token may not look

    @property
    def num_positions(self) -> int:
        return self.is_later.shape[3]


class AttentionPlan(Protocol):
    @property
    def positions(self) -> Tensor:
        """`[N]`, each new token's place in its slot."""

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write the new keys and values of one layer, then attend.

        `qkv` `[N, 3, H, D]`, the queries already scaled; `keys`, `values` `[num_slots, H, max_model_len, D]`, one
        layer's. Returns `[N, H * D]`.
        """


def plan_attention(rows: list[NewTokens], cache: KVCache) -> AttentionPlan:
    """Plan a step whose rows come in this order."""
    positions = torch.tensor([row.start + t for row in rows for t in range(row.num_tokens)], device=cache.keys.device)
    return KernelPlan.of(rows, positions) if kernels.can_attend(cache.keys) else SpanPlan.of(rows, positions)


@dataclass(frozen=True, slots=True, eq=False)
class KernelPlan:
    positions: Tensor  # [N]
    rows: Tensor  # [R, 4]: a row's first token of the N, its slot, its start, its num_tokens

    @classmethod
    def of(cls, rows: list[NewTokens], positions: Tensor) -> "KernelPlan":
        first_tokens = accumulate((row.num_tokens for row in rows), initial=0)
        numbers = [(first, row.slot, row.start, row.num_tokens) for first, row in zip(first_tokens, rows, strict=False)]
        return cls(positions, torch.tensor(numbers))

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return kernels.attend(qkv, keys, values, self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class SpanPlan:
    positions: Tensor  # [N]
    slots: Tensor  # [N]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, rows: list[NewTokens], positions: Tensor) -> "SpanPlan":
        """Rows of one token on neighbouring slots share a span."""
        slots = [row.slot for row in rows for _ in range(row.num_tokens)]
        spans: list[Span] = []
        first_token = 0
        for span_rows in _group(rows):
            is_later = _later_positions(span_rows, positions.device)
            spans.append(Span(first_token, span_rows[0].slot, len(span_rows), span_rows[0].num_tokens, is_later))
            first_token += sum(row.num_tokens for row in span_rows)
        return cls(positions, torch.tensor(slots, device=positions.device), tuple(spans))

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)  # [N, H, D] each
        keys[self.slots, :, self.positions] = k
        values[self.slots, :, self.positions] = v
        outputs = [_attend_span(q, keys, values, span) for span in self.spans]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@dataclass(frozen=True, slots=True, eq=False)
class StaticPlan:
    """One token of each of the first B slots, over their first S positions, whoever they belong to.

    `slots` says where each row's token is written: into its own slot, or into the spare one if the row is not in the
    step. Such a row reads what it finds, and nobody reads its result.
    """

    positions: Tensor  # [B]
    slots: Tensor  # [B]
    is_later: Tensor  # [B, 1, 1, S]

    @classmethod
    def of(cls, positions: Tensor, slots: Tensor, num_positions: int) -> "StaticPlan":
        is_later = torch.arange(num_positions, device=positions.device) > positions[:, None, None, None]
        return cls(positions, slots, is_later)

    def attend(self, qkv: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)  # [B, H, D] each
        keys[self.slots, :, self.positions] = k
        values[self.slots, :, self.positions] = v
        B, S = self.is_later.shape[0], self.is_later.shape[3]
        return _attend_one(q[:, :, None], keys[:B, :, :S], values[:B, :, :S], self.is_later).reshape(B, -1)


def _group(rows: list[NewTokens]) -> list[list[NewTokens]]:
    """Cut the rows into spans: as long as they are neighbours, and padding to the longest costs less than a cut."""
    groups = [[rows[0]]]
    for row in rows[1:]:
        group = groups[-1]
        is_neighbour = row.num_tokens == group[-1].num_tokens == 1 and row.slot == group[-1].slot + 1
        starts = [other.start for other in (*group, row)]
        padding = max(starts) * len(starts) - sum(starts)
        if is_neighbour and padding <= MAX_PADDING * len(starts):
            group.append(row)
        else:
            groups.append([row])
    return groups


def _later_positions(rows: list[NewTokens], device: torch.device) -> Tensor:
    num_positions = max(row.start + row.num_tokens for row in rows)
    starts = torch.tensor([row.start for row in rows], device=device)
    positions = starts[:, None] + torch.arange(rows[0].num_tokens, device=device)  # [B, T]
    return torch.arange(num_positions, device=device) > positions[:, None, :, None]  # [B, 1, T, S]


def _attend_span(q: Tensor, keys: Tensor, values: Tensor, span: Span) -> Tensor:
    B, T, S = span.num_rows, span.num_tokens, span.num_positions
    H, D = q.shape[1:]
    rows = slice(span.first_slot, span.first_slot + B)
    keys, values = keys[rows, :, :S], values[rows, :, :S]  # [B, H, S, D]
    q = q[span.first_token : span.first_token + B * T].view(B, T, H, D).transpose(1, 2)  # [B, H, T, D]
    if T > 1:
        attention = F.scaled_dot_product_attention(q, keys, values, attn_mask=~span.is_later, scale=1.0)
    else:
        attention = _attend_one(q, keys, values, span.is_later)
    return attention.transpose(1, 2).reshape(B * T, H * D)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, is_later: Tensor) -> Tensor:
    """`q` `[B, H, 1, D]` over `keys`, `values` `[B, H, S, D]`, but where `is_later` `[B, 1, 1, S]`: `[B, H, 1, D]`.

    For one token a row SDPA takes four times as long on CPUs, and keys @ q half as long as q @ keys.T. The scores are
    overwritten; SDPA adds its mask to them, and one that overflows beyond a row's end, of a key that the slot's former
    owner left, would become inf - inf.
    """
    scores = torch.matmul(keys, q.transpose(2, 3)).transpose(2, 3)  # [B, H, 1, S]
    weights = scores.masked_fill_(is_later, float("-inf")).softmax(dim=-1)
    return torch.matmul(weights, values)
