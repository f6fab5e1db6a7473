"""What a replica's work costs, and how that is read off one real replica.

Knows seconds and bytes. Knows nothing of queues, routers or of time going by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

# Beside a decoding row, which has logits, a prompt's token costs about half: batching/scheduler.py.
PROMPT_TOKEN_OVER_ROW = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What every request asks for."""

    num_prompt_tokens: int = 32
    num_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class ReplicaCosts:
    """Times in seconds. `step_seconds`: of one step by its rows, ascending; between two of them in proportion.

    `request_seconds` (HTTP and text) and `load_seconds` (checking a prefix that was not in memory, and handing it to
    the engine) are of a core: of another one than the engine's where there is a spare one, else of the engine's time.
    `cold_load_seconds` is the wait for the bucket, beside all else.
    """

    step_seconds: tuple[tuple[int, float], ...]
    prefill_seconds_per_token: float
    request_seconds: float
    load_seconds: float
    cold_load_seconds: float
    start_seconds: float
    prefix_bytes: int
    has_spare_core: bool
    max_num_seqs: int = 64
    max_queued_per_slot: int = 4

    @property
    def max_open(self) -> int:
        """Requests that run or wait; further ones get 429."""
        return self.max_num_seqs * (1 + self.max_queued_per_slot)

    def step(self, num_rows: int) -> float:
        rows, seconds = zip(*self.step_seconds, strict=True)
        return float(np.interp(num_rows, rows, seconds))

    def requests_per_second(self, num_clients: int, work: Work) -> float:
        """Of one replica whose `num_clients` ask anew when they are answered; no more of them than slots."""
        prefill = num_clients * work.num_prompt_tokens * self.prefill_seconds_per_token
        beside = self.request_seconds * (1 if self.has_spare_core else num_clients)
        return num_clients / (beside + prefill + work.num_new_tokens * self.step(num_clients))

    def crowded(self) -> "ReplicaCosts":
        """The same where every core has an engine's thread to run."""
        return replace(self, has_spare_core=False)


def fit(
    requests_per_second: Mapping[int, float],
    work: Work,
    *,
    request_seconds: float,
    misses_vs_hits: float,
    cold_load_seconds: float,
    start_seconds: float,
    prefix_bytes: int,
) -> ReplicaCosts:
    """The costs with which one replica, a core to spare, answers so many clients so many requests a second.

    Those figures fix a step's time at as many rows; what of it is the prompts' they cannot tell, so a prompt's token
    costs `PROMPT_TOKEN_OVER_ROW` of what a further decoding row does. A load costs what it took of the throughput
    where all cores were busy, with the last clients but one: `misses_vs_hits`.
    """
    nums = sorted(requests_per_second)
    few, many = nums[-2:]
    round_seconds = {num: num / requests_per_second[num] for num in nums}  # all clients are answered once
    per_row = (round_seconds[many] - round_seconds[few]) / (many - few)  # prompt and tokens of one more row
    prefill = per_row / (work.num_new_tokens / PROMPT_TOKEN_OVER_ROW + work.num_prompt_tokens)

    def step(num: int) -> float:
        alone = round_seconds[num] - request_seconds - num * work.num_prompt_tokens * prefill
        return alone / work.num_new_tokens

    return ReplicaCosts(
        step_seconds=tuple((num, step(num)) for num in nums),
        prefill_seconds_per_token=prefill,
        request_seconds=request_seconds,
        load_seconds=max(0.0, 1 / misses_vs_hits - 1) / requests_per_second[few],  # noise may have it above 1
        cold_load_seconds=cold_load_seconds,
        start_seconds=start_seconds,
        prefix_bytes=prefix_bytes,
        has_spare_core=True,
        max_num_seqs=many,
    )
