"""A batch of eight in which one row is poisoned, in one of six ways: what its mates say, and what becomes of it.

The quick form is in `test_containment.py` here, the long one in `tests/torture`.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import count

import torch

from batching.engine import Engine
from batching.model_runner import RowLogits
from batching.sequence import RowStep
from batching.types import FinishReason, Request, StepOutput
from prefix_store.prefix import Prefix
from tests.batching.support import ask, make_engine, make_model, make_prefix, make_prompt, run, tokens

BATCH = 8
CLOSE = 2e-4  # where the two likeliest tokens are nearer than this, a batch of another size may choose the other one
MODEL = make_model()
SHAPE = make_engine(MODEL, 1).backbone.shape
PREFIXES = [None, *(make_prefix(SHAPE, length, seed=length) for length in (1, 4, 10))]
_ids = count()


def a_request(seed: int) -> Request:
    """One of any kind: greedy, sampled, penalised or by beams."""
    chooser = random.Random(seed)
    kind = chooser.choice([{}, {"temperature": 0.9, "seed": seed}, {"repetition_penalty": 1.5}, {"num_beams": 2}])
    return ask(
        make_prompt(chooser.randint(1, 50), seed=seed),
        chooser.choice(PREFIXES),
        max_new_tokens=chooser.randint(4, 14),
        logprobs=2,
        **kind,
    )


MATES = [a_request(seed) for seed in range(24)]


@cache
def alone(dtype: str) -> list[list[StepOutput]]:
    """What each mate says with nobody beside it."""
    return [run(make_engine(MODEL, 2, dtype), [replace(mate, request_id="alone")])[0] for mate in MATES]


def is_same(expected: list[StepOutput], crowded: list[StepOutput]) -> bool:
    """Whether the tokens are equal, up to the first place at which two were almost equally likely."""
    said, expected_tokens = tokens(crowded), tokens(expected)
    logprobs = [logprob for output in expected for logprob in output.logprobs]
    for place, token_id in enumerate(expected_tokens):
        if place >= len(said) or said[place] != token_id:
            (_, first), (_, second) = logprobs[place].top
            return place < len(said) and first - second < CLOSE
    return len(said) == len(expected_tokens) and crowded[-1].finish_reason is expected[-1].finish_reason


# -- six ways to poison a row: what is done before each pass that holds it, once it has said a few tokens -------------

# The engine, the culprit, the pass's rows, and how many passes were struck before.
Poison = Callable[[Engine, Request, list[RowStep], int], None]


def raises_once(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    if num_strikes == 0:
        raise RuntimeError("once")


def raises_for_the_row(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    raise RuntimeError("for this row")


def runs_out_of_memory(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    if len(steps) > 2:
        raise torch.OutOfMemoryError("too many rows")


def has_nan_in_its_slot(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    (slot,) = engine._sequences[culprit.request_id].slots
    engine.cache.keys[:, slot, :, 0] = math.nan


def cannot_be_sampled(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    engine._sequences[culprit.request_id].uniforms = ["not a number"] * 99  # type: ignore[list-item]


def overflows(engine: Engine, culprit: Request, steps: list[RowStep], num_strikes: int) -> None:
    """Nothing is left to do: its prefix is to blame."""


# Of each way, whether the row itself is saved too, as long as it is not alone.
KINDS: dict[str, tuple[Poison, bool]] = {
    "the forward raises once": (raises_once, True),
    "the forward raises for the row": (raises_for_the_row, False),
    "the forward runs out of memory": (runs_out_of_memory, True),
    "the logits are NaN": (has_nan_in_its_slot, False),
    "the prefix overflows": (overflows, False),
    "the sampler raises for the row": (cannot_be_sampled, False),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many mates did not say what they say alone; whether the culprit ended as it should and left nothing."""

    num_mates_changed: int
    is_contained: bool


def poison_one(engine: Engine, kind: str, chooser: random.Random) -> Outcome | None:
    """Run the culprit among seven others, who come a few steps before or after it. None where its mates were gone
    before the poison could strike."""
    poison, is_saved = KINDS[kind]
    culprit = _culprit(poison, chooser)
    chosen = chooser.sample(range(len(MATES)), BATCH - 1)
    requests = [*(replace(MATES[i], request_id=f"mate-{next(_ids)}") for i in chosen), culprit]
    arrivals = {i: chooser.randint(0, 4) for i in range(BATCH)}
    with _poisoned(engine, culprit, poison, 0 if poison is overflows else chooser.randint(0, 5)) as sizes:
        *crowded, own = run(engine, requests, arrivals)
    if not sizes or sizes[0] < 3:
        return None
    expected = {FinishReason.LENGTH, FinishReason.STOP} if is_saved else {FinishReason.ERROR}
    is_clean = bool(engine.cache.keys.isfinite().all() and engine.cache.values.isfinite().all())
    return Outcome(
        num_mates_changed=sum(
            not is_same(alone(engine.backbone.dtype_name)[i], said) for i, said in zip(chosen, crowded, strict=True)
        ),
        is_contained=own[-1].finish_reason in expected and engine.num_free_slots == engine.max_num_seqs and is_clean,
    )


def poison_many(num_trials: int, seed: int, dtype: str = "float32") -> list[Outcome]:
    """So many trials on one engine, of all kinds alike; those in which nothing was struck do not count."""
    chooser = random.Random(seed)
    engine = make_engine(MODEL, 2 * BATCH, dtype)  # a search takes two slots
    outcomes: list[Outcome] = []
    while len(outcomes) < num_trials:
        kind = list(KINDS)[len(outcomes) % len(KINDS)]
        outcome = poison_one(engine, kind, chooser)
        outcomes += [] if outcome is None else [outcome]
    return outcomes


@contextmanager
def _poisoned(engine: Engine, culprit: Request, poison: Poison, num_said: int) -> Iterator[list[int]]:
    """Strike before each pass that holds the culprit, from its token `num_said` on; of each such pass, its rows."""
    execute = engine._runner.execute
    sizes: list[int] = []

    def execute_poisoned(steps: list[RowStep]) -> list[RowLogits]:
        rows = [step.row for step in steps if step.sequence.request is culprit]
        if rows and len(rows[0].output_token_ids) >= num_said:
            sizes.append(len(steps))
            poison(engine, culprit, steps, len(sizes) - 1)
        return execute(steps)

    engine._runner.execute = execute_poisoned  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        engine._runner.execute = execute  # type: ignore[method-assign]


def _culprit(poison: Poison, chooser: random.Random) -> Request:
    prefix = chooser.choice(PREFIXES)
    if poison is overflows:
        huge = make_prefix(SHAPE, chooser.randint(1, 6)).past_key_values.fill_(chooser.choice([3e38, -3e38]))
        prefix = Prefix(huge, revision="huge", kind="prefix")
    sampling = {"temperature": 1.0, "seed": 5} if poison is cannot_be_sampled else {}
    prompt = make_prompt(chooser.randint(1, 50), seed=chooser.randrange(99))
    return ask(prompt, prefix, max_new_tokens=6, min_new_tokens=6, **sampling)
