"""Where a call for many raises, only the culprits fail."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from batching import engine as engine_module
from batching.containment import Failure, run_contained
from batching.types import Compile, FinishReason
from tests.batching.poison import KINDS, MATES, MODEL, alone, is_same, poison_many
from tests.batching.support import ask, make_engine, make_prompt, run, tokens


def double(items: list[int]) -> list[int]:
    if any(item < 0 for item in items):
        raise ValueError("negative")
    return [2 * item for item in items]


@pytest.mark.parametrize("culprits", [(), (0,), (3, 4), range(8)])
def test_only_the_culprits_fail(culprits):
    items = [-1 if i in culprits else i for i in range(8)]
    expected = [Failure("ValueError: negative") if i in culprits else 2 * i for i in range(8)]
    assert run_contained(double, items) == expected


def test_what_a_failed_run_allocated_is_free_before_the_halves_run():
    allocated: list[weakref.ref] = []

    def run(items: list[int]) -> list[int]:
        gc.collect()
        assert all(ref() is None for ref in allocated)
        activations = torch.ones(10)
        allocated.append(weakref.ref(activations))
        if len(items) > 1:
            raise torch.OutOfMemoryError("too large")
        return items

    assert run_contained(run, [1, 2, 3, 4]) == [1, 2, 3, 4]


def test_a_device_that_cannot_be_trusted_any_more_is_no_rows_fault():
    def run(items: list[int]) -> list[int]:
        raise torch.AcceleratorError("device-side assert")

    with pytest.raises(torch.AcceleratorError):
        run_contained(run, [1, 2])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_poisoned_rows_mates_say_what_they_say_without_it(dtype):
    outcomes = poison_many(num_trials=4 * len(KINDS), seed=1, dtype=dtype)
    assert sum(outcome.num_mates_changed for outcome in outcomes) == 0
    assert all(outcome.is_contained for outcome in outcomes)


def test_when_every_pass_raises_all_rows_fail_and_the_next_ones_are_served():
    engine = make_engine(MODEL)
    execute = engine._runner.execute

    def fail(steps):
        raise RuntimeError("always")

    engine._runner.execute = fail
    for outputs in run(engine, MATES[:6]):
        assert [output.finish_reason for output in outputs] == [FinishReason.ERROR]
    engine._runner.execute = execute
    assert all(map(is_same, alone("float32")[:6], run(engine, MATES[:6])))


@pytest.mark.parametrize("what", ["log-probabilities of a prompt", "a compiled prompt"])
def test_there_being_no_memory_to_tell_of_one_prompt_is_no_other_rows_end(what, monkeypatch):
    is_compile = what == "a compiled prompt"
    engine = make_engine(MODEL)
    text = make_prompt(70)
    culprit = Compile("culprit", "default", token_ids=text) if is_compile else ask(text, prompt_logprobs=True)

    def fail(*_):
        raise torch.OutOfMemoryError("no room")

    if is_compile:
        monkeypatch.setattr(engine.cache, "read", fail)
    else:
        monkeypatch.setattr(engine_module, "own_logprobs", fail)
    for request in (*MATES[:6], culprit):
        engine.add_request(request)
    told: dict[str, list] = {request.request_id: [] for request in (*MATES[:6], culprit)}
    while engine.has_work:
        for output in engine.step():
            told[output.request_id].append(output)
    assert "no room" in told.pop(culprit.request_id)[-1].error
    assert all(map(is_same, alone("float32")[:6], told.values()))
    assert engine.num_free_slots == 8
    monkeypatch.undo()
    assert all(map(is_same, alone("float32")[:6], run(engine, MATES[:6])))


def test_a_row_whose_constraint_cannot_be_followed_fails_and_its_mates_choose_once():
    """Nothing is chosen again: their rows and constraints have taken their step already."""

    class Constraint:
        """Allows everything."""

        is_ready = True

        def __init__(self, is_broken: bool) -> None:
            self.is_broken = is_broken
            self.followed: list[int] = []

        def allowed(self) -> np.ndarray:
            return np.full((engine.backbone.vocab_size + 7) // 8, 255, np.uint8)

        def follow(self, output_token_ids) -> None:
            if self.is_broken:
                raise RuntimeError("can't start new thread")
            self.followed += output_token_ids[len(self.followed) :]

    constraints = [Constraint(False), Constraint(True), Constraint(False)]
    engine = make_engine(MODEL)
    engine._constrain = lambda constraint, _: constraints[constraint]
    plain = [ask(make_prompt(9, seed=i), max_new_tokens=8) for i in range(4)]
    expected = [tokens(outputs) for outputs in run(make_engine(MODEL), plain)]
    outputs = run(engine, [plain[0], *(replace(request, constraint=i) for i, request in enumerate(plain[1:]))])
    assert outputs[2][-1].finish_reason is FinishReason.ERROR
    assert [tokens(outputs[i]) for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]
    assert [constraints[i].followed for i in (0, 2)] == [list(expected[i][:-1]) for i in (1, 3)]
