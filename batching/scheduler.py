"""Picks which rows run next.

Knows slots, token counts and finish rules. Knows nothing of tensors, text or HTTP.
"""

import math
from collections import deque
from itertools import accumulate
from typing import Protocol

from batching.fairness import FairShare
from batching.sequence import Row, RowStep, Sequence

# A token that reads so many positions costs twice what one costs that reads none.
DOUBLING_POSITIONS = 640
# Of prompts, beside rows that decode. On a GPU a step that reads one costs the launch of its kernels, out of the
# graphs, and not their work, so that few large pieces are better (no GPU has measured it).
MIN_PREFILL_TOKENS = 18
GPU_MIN_PREFILL_TOKENS = 512
# Of prompts, where no row decodes; only who comes meanwhile waits for the step's end.
MAX_PREFILL_TOKENS = 512
# And where nothing has run before: rows that come together begin together, and end together. Not of a large backbone,
# whose step takes seconds as it is.
MAX_FIRST_PREFILL_TOKENS = 1024


class SlotPool(Protocol):
    @property
    def num_free(self) -> int: ...
    def take(self) -> int: ...
    def give_back(self, slot: int) -> None: ...


class Scheduler:
    """Fair between tenants, first come first served within one. A step holds one token of every decoding row and a
    bounded piece of waiting prompts.

    While rows decode, a step's prompt tokens are at most as many as its decoding rows, or `min_prefill_tokens`, and
    fewer, the further they are into their row. A prompt's token costs about half of what a decoding row does, since it
    has no logits, so that a step beside a long prompt is half as long again: what the machine adds to the longest of
    many steps comes on top, and brings the others' longest gap to about twice their median one.
    """

    def __init__(
        self,
        slots: SlotPool,
        fair_share: FairShare,
        min_prefill_tokens: int = MIN_PREFILL_TOKENS,
        max_prefill_tokens: int = MAX_PREFILL_TOKENS,
        max_first_prefill_tokens: int = MAX_FIRST_PREFILL_TOKENS,
    ) -> None:
        self._slots = slots
        self._fair_share = fair_share
        self._min_prefill_tokens = min_prefill_tokens
        self._max_prefill_tokens = max_prefill_tokens
        self._max_first_prefill_tokens = max_first_prefill_tokens
        self._was_idle = True
        self._waiting: dict[str, deque[Sequence]] = {}  # by tenant; none is empty
        self.running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def add(self, sequence: Sequence) -> None:
        tenant = sequence.request.tenant
        self._waiting.setdefault(tenant, deque()).append(sequence)
        self._fair_share.enter(tenant, sequence.request.weight)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and free its slots."""
        tenant = sequence.request.tenant
        if sequence.slots:
            self.running.remove(sequence)
            for slot in sequence.slots:
                self._slots.give_back(slot)
            self._fair_share.give_back(tenant, len(sequence.slots))
            sequence.slots = ()
        else:
            self._waiting[tenant].remove(sequence)
            self._drop_empty_queue(tenant)
            self._fair_share.leave_queue(tenant)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences into free slots; each one's slots are reserved to its end."""
        self._was_idle = not self.running
        admitted = []
        while self._waiting and self._slots.num_free:
            wanted = {tenant: queue[0].num_slots_needed for tenant, queue in self._waiting.items()}
            tenant = self._fair_share.choose(self._slots.num_free, wanted)
            if tenant is None:
                break
            sequence = self._waiting[tenant].popleft()
            self._drop_empty_queue(tenant)
            sequence.slots = tuple(self._slots.take() for _ in range(sequence.num_slots_needed))
            for slot, prefix in zip(sequence.slots, sequence.prefixes, strict=False):  # a search has further slots
                num_cached = 0 if prefix is None else prefix.num_virtual_tokens
                sequence.rows.append(Row(slot, prefix, num_cached))
            num_prompt_tokens = sequence.num_prompt_tokens * len(sequence.rows)
            self._fair_share.admit(tenant, len(sequence.slots), num_prompt_tokens)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Put tokens that a sequence has said on its tenant's account."""
        self._fair_share.charge_output(sequence.request.tenant, num_tokens)

    def _drop_empty_queue(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def schedule(self) -> list[RowStep]:
        """The rows of the next step: those that decode, by slot; then pieces of prompts."""
        decoding, reading = [], []
        for sequence in self.running:
            if _num_pending(sequence) == 1:
                decoding += [RowStep(sequence, row, 1) for row in sequence.rows]
            else:
                reading.append(sequence)
        decoding.sort(key=lambda step: step.row.slot)
        return decoding + self._bounded(reading, sum(not _waits_to_begin(step.sequence) for step in decoding))

    def max_prompt_tokens_beside(self, num_decoding: int) -> int:
        """How many tokens of prompts a step reads at most, beside so many rows that decode: one or more."""
        return max(self._min_prefill_tokens, num_decoding)

    def _bounded(self, reading: list[Sequence], num_decoding: int) -> list[RowStep]:
        """What the step's budget reads of the prompts: shared between tenants by weight, first come first served within
        one. Who has least to read comes first, and what it leaves of its share is the others'. The oldest gets on, if
        only by a token.
        """
        alone = self._max_first_prefill_tokens if self._was_idle else self._max_prefill_tokens
        budget: float = self.max_prompt_tokens_beside(num_decoding) if num_decoding else alone
        by_tenant: dict[str, list[Sequence]] = {}
        for sequence in reading:
            by_tenant.setdefault(sequence.request.tenant, []).append(sequence)
        queues = sorted(by_tenant.values(), key=lambda queue: sum(map(_cost_of_rest, queue)) / queue[0].request.weight)
        weights = [queue[0].request.weight for queue in queues]
        weights_left = [*accumulate(reversed(weights))][::-1]  # of each queue and those behind it
        pieces: list[RowStep] = []
        for queue, weight, weight_left in zip(queues, weights, weights_left, strict=True):
            share = budget * weight / weight_left
            for sequence in queue:
                cost = _cost_of_token(sequence)
                affordable = min(math.ceil(share / cost), int(budget / cost))
                least = 1 if sequence is reading[0] else 0
                num_tokens = min(_num_pending(sequence), max(affordable, least))
                if num_tokens == 0:
                    break
                pieces += [RowStep(sequence, row, num_tokens) for row in sequence.rows]
                share -= num_tokens * cost
                budget -= num_tokens * cost
        return pieces


def _num_pending(sequence: Sequence) -> int:
    return sequence.num_pending_tokens(sequence.rows[0])


def _waits_to_begin(sequence: Sequence) -> bool:
    """Whether it has read its prompt and cannot speak yet, since its grammar is still being compiled: whatever is read
    beside it stretches no gap between its tokens."""
    constraint = sequence.constraint
    return constraint is not None and not sequence.rows[0].output_token_ids and not constraint.is_ready


def _cost_of_token(sequence: Sequence) -> float:
    """Of one more token of each of its rows, which read the same prompt."""
    return len(sequence.rows) * (1 + sequence.rows[0].num_cached / DOUBLING_POSITIONS)


def _cost_of_rest(sequence: Sequence) -> float:
    return _num_pending(sequence) * _cost_of_token(sequence)
