"""Several prefixes under one text: the next token is chosen from the weighted mean of their distributions."""

from dataclasses import replace

import pytest
import torch

from batching.sampler import draw_uniforms
from batching.types import FinishReason, MixedPrefix, Request, RequestError, StepOutput
from prefix_store.prefix import Prefix
from tests.batching import oracle
from tests.batching.support import ask, ask_mix, make_engine, make_model, make_prefix, make_prompt, run, tokens
from tests.batching.test_constraints import Countdown, fulfils

MODEL = make_model()
SHAPE = make_engine(MODEL, 1).backbone.shape
A, B, C = (make_prefix(SHAPE, length, seed=length) for length in (3, 9, 5))
MIXES = [[(A, 0.7), (B, 0.3)], [(None, 1.0), (C, 2.0)], [(A, 5.0), (None, 1.0), (B, 2.0), (C, 4.0)]]
HUGE = Prefix(make_prefix(SHAPE, 4).past_key_values.fill_(3e38), revision="huge", kind="prefix")


def a_crowd() -> list[Request]:
    """Rows of one prefix each, greedy, sampled and by beams."""
    return [
        ask(make_prompt(40, seed=1), A, max_new_tokens=20),
        ask(make_prompt(3, seed=2), None, max_new_tokens=20, temperature=0.8, seed=3),
        ask(make_prompt(12, seed=3), B, max_new_tokens=20, num_beams=3),
    ]


ALONE = [tokens(run(make_engine(MODEL, 3), [request])[0]) for request in a_crowd()]


def logprobs(outputs: list[StepOutput]) -> list[float]:
    return [entry.logprob for output in outputs for entry in output.logprobs]


def test_every_token_of_a_mixture_is_that_of_plain_forwards_averaged_by_hand():
    engine = make_engine(MODEL, 12)
    requests = [
        ask_mix(make_prompt(length, seed=length), mix, max_new_tokens=12) for mix in MIXES for length in (1, 2, 33, 90)
    ]
    answers = [tokens(outputs) for outputs in run(engine, requests, {i: 3 * i for i in range(len(requests))})]
    assert answers == [oracle.generate_mixture(MODEL, request) for request in requests]
    assert engine.num_free_slots == 12


def test_a_mixture_and_its_mates_say_what_each_says_alone():
    mixed = [ask_mix(make_prompt(20, seed=i), mix, max_new_tokens=16) for i, mix in enumerate(MIXES)]
    alone = [tokens(run(make_engine(MODEL, 4), [replace(request, request_id="alone")])[0]) for request in mixed]
    outputs = run(make_engine(MODEL, 13), [*a_crowd(), *mixed], {i: 2 * i for i in range(6)})
    assert [tokens(row) for row in outputs] == [*ALONE, *alone]


def test_a_mixture_whose_every_token_is_over_a_steps_budget_gets_on_beside_rows_that_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(MODEL, 10)
    monkeypatch.setattr(engine._scheduler, "_min_prefill_tokens", 4)  # as eight rows far into a long context have it
    mate, mixture = ask((5,), A, max_new_tokens=60), ask_mix(make_prompt(9), [(A, 1.0)] * 8, max_new_tokens=2)
    decoding, mixed = run(engine, [mate, mixture], {1: 2})
    assert mixed[-1].step < decoding[-1].step, "it waited until nothing else ran"


def test_a_part_of_no_weight_to_speak_of_changes_nothing():
    prompt = make_prompt(9)
    request = ask_mix(prompt, [(A, 5e-324), (B, 1e6)], max_new_tokens=6)
    mixed, alone = run(make_engine(MODEL), [request, ask(prompt, B, max_new_tokens=6)])
    assert tokens(mixed) == tokens(alone)


def test_log_probabilities_are_the_mixtures():
    prompt = make_prompt(7)
    request = ask_mix(prompt, MIXES[2], max_new_tokens=6, logprobs=3, prompt_logprobs=True)
    (outputs,) = run(make_engine(MODEL), [request])
    said = tokens(outputs)
    expected = oracle.mixture_log_probs(MODEL, request, said)
    for place, entry in enumerate(outputs[-1].logprobs, start=len(prompt) + len(said) - 2):
        assert [token for token, _ in entry.top] == expected[place].topk(3).indices.tolist()
    chosen = expected[range(len(prompt) - 1, len(prompt) + len(said) - 1), said]
    assert logprobs(outputs) == pytest.approx(chosen.tolist(), abs=1e-4)
    in_prompt = [entry.logprob for output in outputs for entry in output.prompt_logprobs]
    foretold = expected[range(len(prompt) - 1), prompt[1:]]
    assert in_prompt == pytest.approx(foretold.tolist(), abs=1e-4)


def test_the_prompts_log_probabilities_are_the_same_when_it_is_read_in_pieces_beside_others():
    request = ask_mix(make_prompt(100, seed=5), MIXES[0], max_new_tokens=1, logprobs=0, prompt_logprobs=True)
    ((output,),) = run(make_engine(MODEL), [request])
    *_, outputs = run(make_engine(MODEL, 8), [*a_crowd(), request], {3: 4})
    crowded = [entry.logprob for output in outputs for entry in output.prompt_logprobs]
    assert crowded == pytest.approx([entry.logprob for entry in output.prompt_logprobs], abs=1e-4)
    assert len(crowded) == 99


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_seed_draws_from_the_mixture(temperature):
    request = ask_mix(make_prompt(6), MIXES[0], max_new_tokens=20, temperature=temperature, seed=11)
    (outputs,) = run(make_engine(MODEL), [request])
    said, uniforms = tokens(outputs), draw_uniforms(11, 0, 20)
    for place, token_id in enumerate(said):
        log_probs = oracle.mixture_log_probs(MODEL, request, said[:place])[-1]
        cumulative = (log_probs / temperature).softmax(dim=-1).cumsum(dim=-1)
        assert token_id == int(torch.searchsorted(cumulative, uniforms[place] * cumulative[-1]))


def test_samples_of_one_request_are_streams_of_their_own():
    request = ask_mix(make_prompt(6), MIXES[0], max_new_tokens=12, temperature=1.0, top_k=20, top_p=0.9, seed=11)
    params = request.sampling_params
    others = [replace(request, request_id=f"{i}", sampling_params=replace(params, choice=i)) for i in range(3)]
    first, second, third = (tokens(outputs) for outputs in run(make_engine(MODEL, 6), others))
    assert first != second != third
    again = replace(others[1], request_id="again")
    assert tokens(run(make_engine(MODEL), [again])[0]) == second


def test_a_penalty_and_a_least_length_apply_to_the_mixture():
    eos, prompt = MODEL.config.eos_token_id, make_prompt(8, seed=4)
    request = ask_mix(prompt, MIXES[1], max_new_tokens=15, min_new_tokens=15, repetition_penalty=1.7)
    said = tokens(run(make_engine(MODEL), [request])[0])
    for place, token_id in enumerate(said):
        scores = oracle.mixture_log_probs(MODEL, request, said[:place])[-1]
        seen = sorted({*prompt, *said[:place]})
        scores[seen] *= 1.7  # log-probabilities are below 0
        scores[eos] = -torch.inf
        assert token_id == int(scores.argmax())


def test_a_mixture_follows_one_constraint():
    constraint = Countdown(num_refusals=2)
    request = replace(ask_mix(make_prompt(5), MIXES[2], max_new_tokens=30), constraint=constraint)
    outputs = run(make_engine(MODEL), [request, ask(make_prompt(9), A, max_new_tokens=25)])
    said = tokens(outputs[0])
    assert fulfils(constraint, said)
    assert len(said) == constraint.length + 1
    assert len(constraint.begun) == 1


def test_a_prefix_mixed_with_itself_says_what_it_says_alone():
    prompt = make_prompt(15)
    alone, mixed = run(
        make_engine(MODEL), [ask(prompt, A, max_new_tokens=20), ask_mix(prompt, [(A, 2), (A, 1)], max_new_tokens=20)]
    )
    assert tokens(alone) == tokens(mixed)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_poisoned_row_fails_its_mixture_alone_and_is_named(place):
    engine = make_engine(MODEL, 9)
    mix = [(A, 1.0), (None, 1.0)]
    mix.insert(place, (HUGE, 0.001))
    *crowd, outputs = run(engine, [*a_crowd(), ask_mix(make_prompt(40, seed=7), mix)], {3: 5})
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert outputs[-1].not_finite_row == place
    assert [tokens(row) for row in crowd] == ALONE
    assert engine.num_free_slots == 9
    assert engine.cache.keys.isfinite().all()
    assert engine.cache.values.isfinite().all()


def test_a_row_that_makes_the_forward_raise_fails_its_mixture_and_no_task_is_blamed():
    engine = make_engine(MODEL, 9)
    culprit = ask_mix(make_prompt(10), MIXES[0])
    execute = engine._runner.execute

    def fail_for_the_culprit(steps):
        if any(step.sequence.request is culprit and step.row.prefix is B for step in steps):
            raise RuntimeError("no")
        return execute(steps)

    engine._runner.execute = fail_for_the_culprit
    *crowd, outputs = run(engine, [*a_crowd(), culprit])
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert outputs[-1].not_finite_row is None
    assert [tokens(row) for row in crowd] == ALONE
    assert engine.num_free_slots == 9


def test_a_mixture_pays_for_each_of_its_rows():
    engine = make_engine(MODEL)
    engine.add_request(ask_mix(make_prompt(10), MIXES[2], max_new_tokens=10, min_new_tokens=10))
    for _ in range(3):
        engine.step()
    account = engine._scheduler._fair_share._accounts["default"]
    assert account.num_slots == 4
    assert account.served == 4 * (10 * 1 + 3 * 2)


def test_an_abort_frees_every_slot():
    engine = make_engine(MODEL)
    request = ask_mix(make_prompt(50), MIXES[2])
    engine.add_request(request)
    engine.step()
    assert engine.num_free_slots == 4
    engine.abort(request.request_id)
    assert engine.num_free_slots == 8


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ask_mix((1,), [(A, 1.0), (B, 1.0)], num_beams=2), "num_beams is 2"),
        (ask_mix((1,), [(A, 1.0)]), "1 parts"),
        (ask_mix((1,), [(A, 1.0)] * 9), "9 parts"),
        (ask_mix((1,), [(A, 1.0)] * 5), "mixed tasks is 5; the server has 4 slots"),
        (ask_mix((1,), [(A, 1.0), (B, 0.0)]), "weight in the mix is 0"),
        (ask_mix((1,), [(A, 1.0), (B, float("inf"))]), "weight in the mix is inf"),
        (ask_mix((1,), [(A, 1e308), (B, 1e308)]), "no finite sum"),
        (ask_mix((1,) * 200, [(None, 1.0), (B, 1.0)], max_new_tokens=48), "257 tokens"),
        (replace(ask((1,), A), mix=(MixedPrefix(A, 1.0), MixedPrefix(B, 1.0))), "one of them"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_before_it_is_queued(request_, reason):
    engine = make_engine(MODEL, 4)
    with pytest.raises(RequestError, match=reason):
        engine.add_request(request_)
    assert not engine.has_work
