"""Attention of a step's new tokens over the slots of their own rows.

A step's tokens lie flat, `[N]`, row after row. `AttentionPlan` says once per step which tokens read which slots, and
all layers follow it. Nothing is padded, stacked or gathered: a span of neighbouring slots is read in place, as a view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    mask: Tensor  # [B, 1, T, S], 0 where a token may look and -inf where not

    @property
    def num_positions(self) -> int:
        return self.mask.shape[3]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    slots: Tensor  # [N]
    positions: Tensor  # [N]
    spans: tuple[Span, ...]


def plan_attention(rows: list[NewTokens], dtype: torch.dtype, device: torch.device) -> AttentionPlan:
    """Plan a step whose rows come in this order. Rows of one token on neighbouring slots share a span."""
    slots = [row.slot for row in rows for _ in range(row.num_tokens)]
    positions = [row.start + t for row in rows for t in range(row.num_tokens)]
    spans: list[Span] = []
    first_row = first_token = 0
    while first_row < len(rows):
        end = first_row + 1
        while end < len(rows) and _share_a_span(rows[end - 1], rows[end]):
            end += 1
        span_rows = rows[first_row:end]
        mask = _causal_mask(span_rows, dtype, device)
        spans.append(Span(first_token, span_rows[0].slot, len(span_rows), span_rows[0].num_tokens, mask))
        first_token += sum(row.num_tokens for row in span_rows)
        first_row = end
    return AttentionPlan(torch.tensor(slots, device=device), torch.tensor(positions, device=device), tuple(spans))


def _share_a_span(row: NewTokens, following: NewTokens) -> bool:
    return row.num_tokens == following.num_tokens == 1 and following.slot == row.slot + 1


def _causal_mask(rows: list[NewTokens], dtype: torch.dtype, device: torch.device) -> Tensor:
    num_positions = max(row.start + row.num_tokens for row in rows)
    starts = torch.tensor([row.start for row in rows], device=device)
    positions = starts[:, None] + torch.arange(rows[0].num_tokens, device=device)  # [B, T]
    is_later = torch.arange(num_positions, device=device) > positions[:, None, :, None]  # [B, 1, T, S]
    return torch.zeros(is_later.shape, dtype=dtype, device=device).masked_fill_(is_later, float("-inf"))


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan) -> Tensor:
    """Write the new keys and values of one layer, then attend.

    `q` (already scaled), `k`, `v` `[N, H, D]`; `keys`, `values` one layer's `[num_slots, H, max_model_len, D]`.
    Returns `[N, H * D]`.
    """
    keys[plan.slots, :, plan.positions] = k
    values[plan.slots, :, plan.positions] = v
    outputs = [_attend_span(q, keys, values, span) for span in plan.spans]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_span(q: Tensor, keys: Tensor, values: Tensor, span: Span) -> Tensor:
    B, T, S = span.num_rows, span.num_tokens, span.num_positions
    H, D = q.shape[1:]
    rows = slice(span.first_slot, span.first_slot + B)
    q = q[span.first_token : span.first_token + B * T].view(B, T, H, D).permute(0, 2, 3, 1)  # [B, H, D, T]
    # keys @ q, not q @ keys.T: for one token a row oneDNN does it two to four times faster.
    scores = torch.matmul(keys[rows, :, :S], q).transpose(2, 3)  # [B, H, T, S]
    weights = (scores + span.mask).softmax(dim=-1)
    return torch.matmul(weights, values[rows, :, :S]).transpose(1, 2).reshape(B * T, H * D)
