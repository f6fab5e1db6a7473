"""How long decoding rows wait while a long prompt is read beside them, and how soon what arrives has its first token.

GPT-2 small's shape with random weights, 17 slots of 1,024 positions, prefix 10, greedy, the end-of-text token
forbidden. 16 rows with prompts of 32 tokens decode for 200 steps; then a prompt of 900 tokens arrives, and after its
first token one of 32. The rows are begun anew for each arrival, so that each finds the same.

- `longest_gap_vs_median`: the longest gap between two tokens of any of the 16 rows, from the long prompt's arrival to
  its first token, over the median gap of the 200 steps before; the median of the arrivals' ratios;
- `long_first_token_steps`, `short_first_token_steps`: steps from the arrival of the long prompt, or the short one, to
  the end of the one that gives its first token; the most of all arrivals.

    python -m benchmarks.latency [--arrivals 20] [--dtype bfloat16] [--out FILE.json]
"""

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from batching.engine import Engine
from batching.types import Request, SamplingParams, StepOutput
from benchmarks.arguments import make_parser
from benchmarks.engine import NUM_PROMPT_TOKENS, make_prefix, make_requests
from benchmarks.report import finish
from benchmarks.small import make_small

NUM_DECODING = 16
NUM_LONG_TOKENS = 900
NUM_STEPS_BEFORE = 200
MAX_MODEL_LEN = 1024
MAX_NEW_TOKENS = 800  # more than the steps of one arrival
ONE_TOKEN = SamplingParams(max_new_tokens=1, min_new_tokens=1)


@dataclass(slots=True)
class Steps:
    """Steps of the engine, and when each row had its last token."""

    engine: Engine
    last_token_at: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[set[str], list[float]]:
        """One step: the rows that had a token, and for each that had one before, the seconds since then."""
        outputs = self.engine.step()
        now = time.perf_counter()
        rows = {each.request_id for each in outputs if isinstance(each, StepOutput) and each.new_token_ids}
        gaps = [now - self.last_token_at[row] for row in rows & self.last_token_at.keys()]
        self.last_token_at |= dict.fromkeys(rows, now)
        return rows, gaps

    def answer(self, request: Request) -> tuple[int, list[float]]:
        """How many steps a request takes to its first token, and the gaps of the other rows meanwhile."""
        self.engine.add_request(request)
        gaps: list[float] = []
        num_steps = 0
        is_answered = False
        while not is_answered:
            rows, gaps_of_step = self.run()
            gaps += gaps_of_step
            num_steps += 1
            is_answered = request.request_id in rows
        return num_steps, gaps


@dataclass(frozen=True, slots=True)
class Arrival:
    """Gaps in seconds."""

    median_gap: float
    longest_gap: float
    long_steps: int
    short_steps: int


def arrive(engine: Engine, decoding: list[Request], long: Request, short: Request) -> Arrival:
    steps = Steps(engine)
    for request in decoding:
        engine.add_request(request)
    while len(steps.last_token_at) < len(decoding):
        steps.run()
    before = [gap for _ in range(NUM_STEPS_BEFORE) for gap in steps.run()[1]]
    assert len(before) == NUM_STEPS_BEFORE * len(decoding), "all rows decode"
    long_steps, gaps = steps.answer(long)
    short_steps, _ = steps.answer(short)
    for request in decoding:
        engine.abort(request.request_id)
    while engine.has_work:
        engine.step()
    return Arrival(statistics.median(before), max(gaps), long_steps, short_steps)


def main() -> None:
    parser = make_parser("A long prompt beside rows that decode")
    parser.add_argument("--arrivals", type=int, default=20)
    args = parser.parse_args()

    small = make_small(args, num_slots=1)
    config = small.model.config
    engine = Engine(small.engine.backbone, NUM_DECODING + 1, MAX_MODEL_LEN)
    prefixes = [make_prefix(config, seed) for seed in range(NUM_DECODING)]
    decoding = make_requests(prefixes, config.vocab_size)
    goes_on = replace(decoding[0].sampling_params, max_new_tokens=MAX_NEW_TOKENS, min_new_tokens=MAX_NEW_TOKENS)
    decoding = [replace(request, sampling_params=goes_on) for request in decoding]
    long, short = (
        replace(make_requests([make_prefix(config, seed)], config.vocab_size, length)[0], request_id=name)
        for name, seed, length in (
            ("long", NUM_DECODING, NUM_LONG_TOKENS),
            ("short", NUM_DECODING + 1, NUM_PROMPT_TOKENS),
        )
    )
    long, short = (replace(request, sampling_params=ONE_TOKEN) for request in (long, short))
    gc.freeze()  # as the engine's process does

    arrive(engine, decoding, long, short)  # for warmth
    arrivals = [arrive(engine, decoding, long, short) for _ in range(args.arrivals)]
    ratios = [arrival.longest_gap / arrival.median_gap for arrival in arrivals]
    rows: dict[str, Sequence[float]] = {
        f"median gap before, ms ({small.dtype})": [1000 * arrival.median_gap for arrival in arrivals],
        f"longest gap, ms ({small.dtype})": [1000 * arrival.longest_gap for arrival in arrivals],
        "longest_gap_vs_median": ratios,
        "steps to the long prompt's first token": [arrival.long_steps for arrival in arrivals],
        "steps to the short prompt's first token": [arrival.short_steps for arrival in arrivals],
    }
    figures = {
        "longest_gap_vs_median": statistics.median(ratios),
        "long_first_token_steps": max(arrival.long_steps for arrival in arrivals),
        "short_first_token_steps": max(arrival.short_steps for arrival in arrivals),
    }
    finish("latency", rows, figures, args.out)


if __name__ == "__main__":
    main()
