"""Rows that may only say what their constraint allows, beside rows that may say anything."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from batching.types import FinishReason, Request, RequestError
from tests.batching.support import ask, make_engine, make_model, make_prefix, make_prompt, run, tokens

MODEL = make_model()
VOCAB_SIZE = 97
EOS = VOCAB_SIZE - 1
PREFIX = make_prefix(make_engine(MODEL, 1).backbone.shape, 5)


@dataclass
class Countdown:
    """Allows only tokens of the residue class that the row's place in its text asks for, and the end after `length`;
    with modulus 1 anything before.

    `num_refusals`: how often each mask is asked for in vain before it is ready. `fails_at`: the place where it raises.
    """

    modulus: int = 7
    length: int = 12
    num_refusals: int = 0
    fails_at: int | None = None
    begun: list["CountdownRow"] = field(default_factory=list)

    def begin(self, vocab_size: int) -> "CountdownRow":
        self.begun.append(CountdownRow(self, vocab_size))
        return self.begun[-1]

    def allows(self, place: int, vocab_size: int) -> np.ndarray:
        if place == self.length:
            return np.arange(vocab_size) == EOS
        allowed = np.arange(vocab_size) % self.modulus == place % self.modulus
        allowed[EOS] = self.modulus == 1
        return allowed


@dataclass
class CountdownRow:
    constraint: Countdown
    vocab_size: int
    told: list[int] = field(default_factory=list)
    num_asked: int = 0
    num_waits: int = 0

    @property
    def is_ready(self) -> bool:
        self.num_asked += 1
        return self.num_asked > self.constraint.num_refusals

    def wait(self, max_seconds: float) -> None:
        self.num_waits += 1

    def allowed(self) -> np.ndarray:
        if len(self.told) == self.constraint.fails_at:
            raise ValueError("too complex")
        return np.packbits(self.constraint.allows(len(self.told), self.vocab_size), bitorder="little")

    def follow(self, output_token_ids: Sequence[int]) -> None:
        assert list(output_token_ids[: len(self.told)]) == self.told
        assert len(output_token_ids) == len(self.told) + 1
        self.told = list(output_token_ids)
        self.num_asked = 0


def constrained(constraint: Countdown, request: Request) -> Request:
    return replace(request, constraint=constraint)


def fulfils(constraint: Countdown, said: list[int]) -> bool:
    return all(constraint.allows(place, VOCAB_SIZE)[token] for place, token in enumerate(said))


WAYS = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 3.0, "seed": 6, "top_k": 3},
    {"temperature": 0.8, "seed": 7, "top_p": 0.4},
    {"repetition_penalty": 5.0},
    {"temperature": 1.0, "seed": 8, "repetition_penalty": 2.0, "logprobs": 2},
]


def mates() -> list[Request]:
    return [
        ask(make_prompt(4 + i, seed=i), PREFIX if i % 2 else None, max_new_tokens=20, **way)
        for i, way in enumerate([*WAYS, {"num_beams": 3}])
    ]


MATES_ALONE = [tokens(run(make_engine(MODEL), [mate])[0]) for mate in mates()]


@pytest.mark.parametrize("way", WAYS)
def test_a_row_says_only_what_its_constraint_allows_and_ends_only_where_it_may(way):
    constraint = Countdown()
    (outputs,) = run(make_engine(MODEL), [constrained(constraint, ask(make_prompt(9), max_new_tokens=40, **way))])
    assert len(tokens(outputs)) == constraint.length + 1
    assert fulfils(constraint, tokens(outputs))
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_a_text_that_is_cut_fulfils_its_constraint_so_far():
    constraint = Countdown()
    (outputs,) = run(make_engine(MODEL), [constrained(constraint, ask(make_prompt(9), max_new_tokens=5))])
    assert fulfils(constraint, tokens(outputs))
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_a_constraint_that_allows_everything_changes_nothing():
    everything = Countdown(modulus=1, length=10**9)
    for request, alone in zip(mates()[:6], MATES_ALONE, strict=False):
        assert tokens(run(make_engine(MODEL), [constrained(everything, request)])[0]) == alone


@pytest.mark.parametrize("num_refusals", [0, 3])
def test_the_mates_of_constrained_rows_say_what_they_say_alone_and_so_do_these(num_refusals):
    constraints = [Countdown(modulus, num_refusals=num_refusals) for modulus in (3, 5, 7)]
    wanted = [ask(make_prompt(6, seed=50 + i), PREFIX, max_new_tokens=15, **WAYS[i]) for i in range(3)]
    alone = [
        tokens(run(make_engine(MODEL), [constrained(Countdown(each.modulus), request)])[0])
        for each, request in zip(constraints, wanted, strict=True)
    ]
    rows = [constrained(each, request) for each, request in zip(constraints, wanted, strict=True)]
    outputs = run(make_engine(MODEL, 8), rows + mates(), {i: i for i in range(10)})
    assert [tokens(row) for row in outputs] == alone + MATES_ALONE


def test_mates_never_wait_for_a_row_whose_constraint_is_slow():
    slow = Countdown(num_refusals=10**9)
    engine = make_engine(MODEL)
    engine.add_request(constrained(slow, ask(make_prompt(50), prompt_logprobs=True)))
    engine.step()  # reads the whole prompt; there is nobody else, so it waits a little
    assert [row.num_waits for row in slow.begun] == [1]
    engine.add_request(ask((1, 2, 3), max_new_tokens=10, min_new_tokens=10))
    said = [token_id for _ in range(10) for output in engine.step() for token_id in output.new_token_ids]
    assert len(said) == 10
    assert [row.num_waits for row in slow.begun] == [1]
    assert engine.last_step.num_prefill_tokens == 1  # its last token only, not the prompt again and again


def test_a_prompt_is_read_at_once_beside_a_row_that_waits_for_its_constraint():
    engine = make_engine(MODEL)
    engine.add_request(constrained(Countdown(num_refusals=10**9), ask(make_prompt(9))))
    engine.step()
    engine.add_request(ask(make_prompt(50), max_new_tokens=1))
    (said,) = engine.step()
    assert said.finish_reason is FinishReason.LENGTH


def test_a_prompt_is_read_in_pieces_beside_a_row_that_has_begun_to_speak():
    engine = make_engine(MODEL)
    engine.add_request(constrained(Countdown(), ask(make_prompt(9))))
    engine.step()
    engine.add_request(ask(make_prompt(50), max_new_tokens=1))
    engine.step()
    assert engine.last_step.num_prefill_tokens < 50


def test_a_slow_constraint_changes_neither_tokens_nor_log_probabilities():
    params = {"max_new_tokens": 15, "logprobs": 2, "prompt_logprobs": True}
    quick, slow = (
        run(make_engine(MODEL), [constrained(Countdown(num_refusals=n), ask(make_prompt(9), **params))])[0]
        for n in (0, 4)
    )
    told = [[output.logprobs for output in outputs if output.new_token_ids] for outputs in (quick, slow)]
    assert tokens(quick) == tokens(slow)
    assert told[0] == told[1]
    assert len([logprob for output in slow for logprob in output.prompt_logprobs]) == 8


def test_log_probabilities_are_the_models_own():
    (outputs,) = run(make_engine(MODEL), [constrained(Countdown(), ask(make_prompt(9), max_new_tokens=40, logprobs=3))])
    told = [logprob for output in outputs for logprob in output.logprobs]
    assert any(each.token_id not in dict(each.top) for each in told)
    assert all(each.logprob <= each.top[0][1] for each in told)


def test_a_constraint_that_gives_up_fails_its_row_alone_and_the_others_go_on_where_they_were():
    good, bad = Countdown(5), Countdown(5, fails_at=4)
    rows = [
        constrained(good, ask(make_prompt(6, seed=50), max_new_tokens=15)),
        constrained(bad, ask(make_prompt(6, seed=51), max_new_tokens=15)),
    ]
    alone = tokens(run(make_engine(MODEL), [constrained(Countdown(5), rows[0])])[0])
    first, second, *others = run(make_engine(MODEL, 16), rows + mates())
    assert tokens(first) == alone
    assert len(tokens(second)) == 4
    assert second[-1].finish_reason is FinishReason.ERROR
    assert second[-1].error == "ValueError: too complex"
    assert second[-1].not_finite_row is None
    assert [tokens(row) for row in others] == MATES_ALONE


def test_rows_with_the_same_constraint_follow_it_each_by_itself():
    constraint = Countdown()
    rows = [constrained(constraint, ask(make_prompt(9, seed=i), max_new_tokens=40)) for i in range(4)]
    outputs = run(make_engine(MODEL), rows, {i: 2 * i for i in range(4)})
    assert all(fulfils(constraint, tokens(row)) and len(tokens(row)) == 13 for row in outputs)
    assert len(constraint.begun) == 4


def test_a_slot_keeps_nothing_of_a_constraint():
    engine = make_engine(MODEL, 1)
    first, second = run(engine, [constrained(Countdown(), ask((1, 2), max_new_tokens=40)), mates()[0]])
    assert len(tokens(first)) == 13
    assert tokens(second) == MATES_ALONE[0]


@pytest.mark.parametrize("params", [{"num_beams": 2}, {"min_new_tokens": 1}])
def test_what_a_constraint_does_not_go_together_with_is_refused(params):
    with pytest.raises(RequestError, match=next(iter(params))):
        make_engine(MODEL).check(constrained(Countdown(), ask((1, 2), **params)))
