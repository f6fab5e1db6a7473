"""Runs the steps in which every row computes one token, over shapes that do not depend on the rows.

A step computes the first B slots and reads their first S positions, B and S each one of a few numbers; slots that are
not in the step come along for nothing. So on CUDA each pair is captured once as a graph, and a step is one call. What
it starts from lies on the device and goes on by itself: positions by one, tokens to the likeliest ones. A step whose
rows go on in just this way, as greedy ones do, uploads nothing.

Knows slots, positions and tokens. Knows nothing of requests, or of what is chosen from the logits.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from batching.attention import StaticPlan
from batching.gpt2 import Backbone
from batching.kernels import argmax
from batching.kv_cache import KVCache

# R rows of the step, B slots and S positions of a graph, C n_embd, V vocab_size

MIN_POSITIONS = 128  # so GPT-2's 1,024 come in four sizes


class NextToken(NamedTuple):
    """What a row's next entry is computed from, and where in the cache it goes."""

    slot: int
    position: int
    token_id: int


# Logits [B, V] in float32; and for each of these rows [2, B], its likeliest token and whether all of it was finite.
Decode = Callable[[], tuple[Tensor, Tensor]]


class DecodeGraphs:
    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        """Capture every graph, on CUDA; elsewhere the same steps are plain calls. `cache` has a spare slot."""
        assert cache.spare_slot is not None
        self._backbone = backbone
        self._cache = cache
        self._idle = NextToken(cache.spare_slot, 0, 0)
        # Of slot i: where it writes, the position, the token; and the slot whose logits come i-th.
        self._state = torch.zeros(cache.num_slots, 4, dtype=torch.int64, device=backbone.device)
        self._next: list[NextToken] = []  # the rows that the device has gone on to
        # The largest comes first, so that the others find room in what it has allocated.
        sizes = list(product(_buckets(1, cache.num_slots), _buckets(MIN_POSITIONS, cache.max_model_len)))[::-1]
        self._graphs: dict[tuple[int, int], Decode] = {size: partial(self._decode, *size) for size in sizes}
        if self._state.is_cuda:
            with torch.cuda.device(self._state.device):
                self._capture()

    def run(self, rows: list[NextToken]) -> tuple[Tensor, list[bool]]:
        """The float32 logits `[R, V]` after each row's token, and whether all that was computed for it was finite."""
        num_slots = _bucket(max(row.slot for row in rows) + 1, 1, self._cache.num_slots)
        num_positions = _bucket(max(row.position for row in rows) + 1, MIN_POSITIONS, self._cache.max_model_len)
        if rows != self._next:
            self._upload(rows, num_slots)
        self._next = []  # a step that raises may have gone half-way
        logits, told = self._graphs[num_slots, num_positions]()
        # A copy: where a step is run again in halves, the second one's may come to lie where the first one's do.
        logits = logits[: len(rows)].clone()
        likeliest, are_finite = told.tolist()
        self._next = [NextToken(row.slot, row.position + 1, likeliest[i]) for i, row in enumerate(rows)]
        return logits, [bool(is_finite) for is_finite in are_finite[: len(rows)]]

    def _upload(self, rows: list[NextToken], num_slots: int) -> None:
        """Slots without a row begin at position 0: as they go on with the rows they stay behind them, and in bounds."""
        by_slot = {row.slot: row for row in rows}
        order = [*by_slot, *(slot for slot in range(num_slots) if slot not in by_slot)]
        numbers = [(*by_slot.get(slot, self._idle), order[slot]) for slot in range(num_slots)]
        self._state[:num_slots].copy_(torch.tensor(numbers, pin_memory=self._state.is_cuda), non_blocking=True)

    def _decode(self, num_slots: int, num_positions: int) -> tuple[Tensor, Tensor]:
        """One step, all on the device, which asks the host for nothing."""
        slots, positions, token_ids, order = self._state[:num_slots].unbind(1)  # [B] each
        plan = StaticPlan.of(positions, slots, num_positions)
        hidden_states = self._backbone.forward(self._backbone.embed(token_ids), plan, self._cache)[order]  # [B, C]
        logits = self._backbone.logits(hidden_states)  # [B, V]
        # What is not finite in a row reaches its logits; a sum is finite only if all its parts are.
        are_finite = logits.sum(dim=-1).isfinite()
        likeliest = argmax(logits)
        token_ids[order] = likeliest
        positions += 1
        return logits, torch.stack((likeliest, are_finite.long()))

    def _capture(self) -> None:
        """Make each step a graph. All share one pool of memory: no two run at once, nor are one's results kept long."""
        pool = torch.cuda.graph_pool_handle()
        for size, decode in self._graphs.items():
            self._upload([], size[0])
            decode()  # what a first call sets up, in cuBLAS for one, cannot be captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                results = decode()
            self._graphs[size] = partial(_replay, graph, results)


def _replay(graph: torch.cuda.CUDAGraph, results: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The results lie at the same place each time."""
    graph.replay()
    return results


def _bucket(wanted: int, smallest: int, largest: int) -> int:
    """The power of two that holds `wanted`, or `largest`."""
    return min(max(smallest, 1 << (wanted - 1).bit_length()), largest)


def _buckets(smallest: int, largest: int) -> list[int]:
    """All that `_bucket` gives, the smallest first."""
    return sorted({_bucket(wanted, smallest, largest) for wanted in range(1, largest + 1)})
