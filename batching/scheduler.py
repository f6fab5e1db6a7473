"""Picks which rows run next.

Knows slots, token counts and finish rules. Knows nothing of tensors, text or HTTP.
"""

from collections import deque
from typing import Protocol

from batching.sequence import Row, RowStep, Sequence


class SlotPool(Protocol):
    @property
    def num_free(self) -> int: ...
    def take(self) -> int: ...
    def give_back(self, slot: int) -> None: ...


class Scheduler:
    """First come, first served. A step holds one token of every decoding row and a bounded piece of waiting prompts.

    While rows decode, a step's prompt tokens are at most as many as its decoding rows (but `min_prefill_tokens`), so
    that a long prompt about doubles the gap between two tokens of the others, and no more.
    """

    def __init__(self, slots: SlotPool, min_prefill_tokens: int = 32, max_prefill_tokens: int = 512) -> None:
        self._slots = slots
        self._min_prefill_tokens = min_prefill_tokens
        self._max_prefill_tokens = max_prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and free its slots."""
        if sequence in self.running:
            self.running.remove(sequence)
            for slot in sequence.slots:
                self._slots.give_back(slot)
            sequence.slots = ()
        else:
            self.waiting.remove(sequence)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences into free slots, in order; each one's slots are reserved to its end."""
        admitted = []
        while self.waiting and self.waiting[0].num_slots_needed <= self._slots.num_free:
            sequence = self.waiting.popleft()
            sequence.slots = tuple(self._slots.take() for _ in range(sequence.num_slots_needed))
            sequence.rows = [Row(sequence.slots[0], num_cached=sequence.num_virtual_tokens)]
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def schedule(self) -> list[RowStep]:
        """The rows of the next step: those that decode, by slot; then pieces of prompts, oldest first."""
        decoding, reading = [], []
        for sequence in self.running:
            for row in sequence.rows:
                num_pending = sequence.num_pending_tokens(row)
                if num_pending == 1:
                    decoding.append(RowStep(sequence, row, 1))
                else:
                    reading.append(RowStep(sequence, row, num_pending))
        decoding.sort(key=lambda step: step.row.slot)
        return decoding + self._bounded(reading, len(decoding))

    def _bounded(self, reading: list[RowStep], num_decoding: int) -> list[RowStep]:
        budget = max(self._min_prefill_tokens, num_decoding) if num_decoding else self._max_prefill_tokens
        pieces = []
        for step in reading:
            if budget == 0:
                break
            num_tokens = min(step.num_new_tokens, budget)
            pieces.append(RowStep(step.sequence, step.row, num_tokens))
            budget -= num_tokens
        return pieces
