"""The engine from outside: isolation between rows, aborts, failures, limits, compiled prompts."""

from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from batching import kernels
from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.types import Compile, Compiled, ContextTooLong, FinishReason, RequestError, StepOutput
from prefix_store.prefix import Prefix
from tests.batching import oracle
from tests.batching.support import ask, make_engine, make_model, make_prefix, make_prompt, run, tokens

MODEL = make_model()
SHAPE = make_engine(MODEL, 1).backbone.shape
PREFIXES = [make_prefix(SHAPE, length, seed=length) for length in (1, 4, 10, 33)]


def a_crowd() -> list:
    """Rows of every kind: greedy, sampled, penalised, by beams, short and long, with and without a prefix."""
    return [
        ask(make_prompt(5, seed=1), PREFIXES[0], max_new_tokens=20),
        ask(make_prompt(60, seed=2), PREFIXES[1], max_new_tokens=30, temperature=0.9, seed=11),
        ask(make_prompt(1, seed=3), None, max_new_tokens=25, temperature=1.3, top_k=9, seed=12, logprobs=3),
        ask(make_prompt(17, seed=4), PREFIXES[2], max_new_tokens=15, repetition_penalty=1.7),
        ask(make_prompt(8, seed=5), PREFIXES[3], max_new_tokens=12, num_beams=3),
        ask(make_prompt(40, seed=6), PREFIXES[0], max_new_tokens=30, temperature=1.0, top_p=0.7, seed=13),
        ask(make_prompt(9, seed=7), PREFIXES[1], max_new_tokens=10, min_new_tokens=10),
        ask(make_prompt(90, seed=8), PREFIXES[2], max_new_tokens=5, prompt_logprobs=True),
    ]


ALONE = [tokens(run(make_engine(MODEL), [request])[0]) for request in a_crowd()]


def poison(engine: Engine) -> None:
    """Fill free slots with NaN, and a slot just taken with 1e4: all that its owner has not written itself."""
    cache, take, give_back = engine.cache, engine.cache.take, engine.cache.give_back

    def fill(slot: int, value: float) -> None:
        cache.keys[:, slot] = value
        cache.values[:, slot] = value

    def poisoned_take() -> int:
        slot = take()
        fill(slot, 1e4)
        return slot

    def poisoned_give_back(slot: int) -> None:
        give_back(slot)
        fill(slot, float("nan"))

    for slot in range(cache.num_slots):
        fill(slot, float("nan"))
    cache.take, cache.give_back = poisoned_take, poisoned_give_back  # type: ignore[method-assign]


def test_a_rows_tokens_do_not_depend_on_its_neighbours():
    outputs = run(make_engine(MODEL, 6), a_crowd(), {i: 3 * i for i in range(8)})
    assert [tokens(row) for row in outputs] == ALONE


def test_slots_begin_as_zeros():
    cache = make_engine(MODEL).cache
    assert not cache.keys.any()
    assert not cache.values.any()


@pytest.mark.parametrize("attention", ["as here", "without kernels"])
def test_nan_in_free_slots_and_large_numbers_above_live_rows_change_nothing(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention == "without kernels":
        monkeypatch.setattr(kernels, "_library", None)
    engine = make_engine(MODEL, 6)
    poison(engine)
    outputs = run(engine, a_crowd() + a_crowd(), {i: 2 * i for i in range(16)})
    assert [tokens(row) for row in outputs] == ALONE + ALONE


def test_every_output_says_which_steps_held_the_row():
    first, second = run(make_engine(MODEL), [ask((1, 2), max_new_tokens=4, min_new_tokens=4), ask((3,))], {1: 2})
    assert [output.step for output in first] == [1, 2, 3, 4]
    assert {output.first_step for output in first} == {1}
    assert second[0].first_step == 3


def test_steps_count_the_distinct_prefixes_they_held():
    engine = make_engine(MODEL)
    for prefix in (PREFIXES[0], PREFIXES[0], PREFIXES[1], None):
        engine.add_request(ask((1, 2), prefix, max_new_tokens=3, min_new_tokens=3))
    engine.step()
    engine.step()
    assert engine.last_step is not None
    assert engine.last_step.num_distinct_prefixes == 3
    assert engine.last_step.num_rows == engine.last_step.num_decode_tokens == 4


def test_steps_tell_their_rows_with_slot_and_tokens():
    engine = make_engine(MODEL)
    first, second = ask((1, 2, 3), max_new_tokens=4, min_new_tokens=4), ask((4, 5), max_new_tokens=4, min_new_tokens=4)
    engine.add_request(first)
    engine.step()
    engine.add_request(second)
    engine.step()
    assert engine.last_step is not None
    assert engine.last_step.rows == (
        (first.request_id, 0, 1, True),
        (second.request_id, 1, 2, False),
    )


def test_steps_tell_how_many_answers_got_a_token():
    """The piece of a prompt that is not its last gives none, and beams together one."""
    engine = make_engine(MODEL)
    engine.add_request(ask((1, 2), max_new_tokens=20, min_new_tokens=20, num_beams=2))
    engine.step()
    engine.add_request(ask(make_prompt(100), max_new_tokens=3, min_new_tokens=3))
    given = 1
    while engine.has_work:
        engine.step()
        assert engine.last_step is not None
        given += engine.last_step.num_tokens
    assert given == 20 + 3


@pytest.mark.parametrize(("num_heads", "most"), [(4, 1024), (97, 512)])  # of 8 numbers each: one more than GPT-2 small
def test_prompts_that_come_to_an_idle_engine_are_read_together_and_of_a_large_backbone_fewer(num_heads, most):
    engine = make_engine(make_model(n_layer=1, n_head=num_heads))
    for seed in range(8):
        engine.add_request(ask(make_prompt(200, seed=seed), max_new_tokens=2))
    engine.step()
    assert engine.last_step is not None
    assert sum(row.num_tokens for row in engine.last_step.rows) == most


def test_where_something_ran_before_prompts_are_read_in_smaller_steps():
    engine = make_engine(make_model(), max_num_seqs=16)
    for seed in range(9):
        engine.add_request(ask(make_prompt(200, seed=seed), max_new_tokens=1))
    found = []
    while engine.has_work:
        engine.step()
        assert engine.last_step is not None
        found.append(sum(row.num_tokens for row in engine.last_step.rows))
    assert found[0] == 1024
    assert found[1:]
    assert max(found[1:]) <= 512


def test_a_long_prompt_does_not_hold_up_rows_that_decode():
    engine = make_engine(MODEL)
    short = ask((1, 2), max_new_tokens=50, min_new_tokens=50)
    engine.add_request(short)
    engine.step()
    engine.add_request(ask(make_prompt(200), max_new_tokens=2))
    for _ in range(5):
        assert short.request_id in {output.request_id for output in engine.step()}
        assert engine.last_step is not None
        assert engine.last_step.num_prefill_tokens <= 24


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_an_abort_frees_the_slots_at_once_and_is_reported(num_steps):
    engine = make_engine(MODEL, 4)
    request = ask(make_prompt(40), PREFIXES[0], max_new_tokens=50, num_beams=3)
    engine.add_request(request)
    for _ in range(num_steps):
        engine.step()
    engine.abort(request.request_id)
    engine.abort("unknown")
    assert engine.num_free_slots == 4
    (output,) = engine.step()
    assert output.finish_reason is FinishReason.ABORT
    assert not engine.has_work


def test_a_row_whose_prefix_gives_non_finite_logits_fails_alone():
    huge = make_prefix(SHAPE, 4)
    huge.past_key_values.fill_(3e38)
    engine = make_engine(MODEL, 6)
    outputs = run(engine, [*a_crowd(), ask((1, 2, 3), huge)], {i: i for i in range(8)})
    (failed,) = outputs[-1]
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error is not None
    assert "finite" in failed.error
    assert failed.not_finite_row == 0
    assert [tokens(row) for row in outputs[:-1]] == ALONE
    assert engine.cache.keys.isfinite().all()
    assert engine.cache.values.isfinite().all()


def test_a_row_that_makes_the_forward_raise_fails_alone():
    engine = make_engine(MODEL, 8)
    execute = engine._runner.execute
    culprit = ask((5, 6, 7), PREFIXES[0])

    def fail_for_the_culprit(steps):
        if any(step.sequence.request is culprit for step in steps):
            raise RuntimeError("no")
        return execute(steps)

    engine._runner.execute = fail_for_the_culprit  # type: ignore[method-assign]
    outputs = run(engine, [*a_crowd(), culprit])
    assert outputs[-1][-1].finish_reason is FinishReason.ERROR
    assert outputs[-1][-1].not_finite_row is None
    assert [tokens(row) for row in outputs[:-1]] == ALONE
    assert engine.num_free_slots == 8


@pytest.mark.parametrize("by", ["token_ids", "embeddings"])
def test_a_compiled_prompt_is_the_backbones_own_keys_and_values(by):
    engine = make_engine(MODEL)
    text = make_prompt(70)
    embeddings = MODEL.transformer.wte.weight.detach()[torch.tensor(text)]
    compile_ = Compile("c", "default", **({"token_ids": text} if by == "token_ids" else {"embeddings": embeddings}))
    engine.add_request(ask((1, 2), PREFIXES[0], max_new_tokens=40))
    engine.add_request(compile_)
    compiled = None
    while engine.has_work:
        for output in engine.step():
            compiled = output if isinstance(output, Compiled) else compiled
    assert compiled is not None
    assert compiled.past_key_values is not None
    with torch.no_grad():
        cache = MODEL(torch.tensor([text])).past_key_values
    for layer in range(SHAPE.n_layer):
        keys, values = compiled.past_key_values[layer].transpose(1, 2)
        torch.testing.assert_close(keys, cache.layers[layer].keys[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(values, cache.layers[layer].values[0], rtol=0, atol=1e-4)


def test_prompt_logprobs_are_those_of_the_model():
    prompt = make_prompt(45)
    (outputs,) = run(make_engine(MODEL), [ask(prompt, PREFIXES[1], max_new_tokens=2, prompt_logprobs=True, logprobs=2)])
    logits = oracle.logits(MODEL, PREFIXES[1].past_key_values, list(prompt))
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    told = outputs[0].prompt_logprobs
    assert [token.token_id for token in told] == list(prompt[1:])
    torch.testing.assert_close(torch.tensor([token.logprob for token in told]), expected, rtol=0, atol=1e-4)
    assert all(len(token.top) == 2 for token in told)
    assert outputs[1].prompt_logprobs == ()


def test_a_request_that_does_not_fit_the_context_is_refused_before_it_is_queued():
    engine = make_engine(MODEL)
    engine.check(ask(make_prompt(100), PREFIXES[3], max_new_tokens=123))
    with pytest.raises(ContextTooLong, match="257 tokens; the backbone has 256"):
        engine.add_request(ask(make_prompt(100), PREFIXES[3], max_new_tokens=124))
    with pytest.raises(RequestError, match="no tokens"):
        engine.add_request(ask((), max_new_tokens=1))
    with pytest.raises(RequestError, match="vocabulary"):
        engine.add_request(ask((97,), max_new_tokens=1))
    with pytest.raises(RequestError, match="slots"):
        engine.add_request(ask((1,), num_beams=9))
    assert not engine.has_work


def test_the_whole_context_can_be_used():
    (outputs,) = run(make_engine(MODEL), [ask(make_prompt(100), PREFIXES[3], max_new_tokens=123, min_new_tokens=123)])
    assert len(tokens(outputs)) == 123


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 40),  # prompt
            st.integers(0, 3),  # prefix
            st.integers(1, 12),  # new tokens
            st.sampled_from([1, 1, 1, 2, 4]),  # beams
            st.integers(0, 3),  # steps until the next arrival
            st.one_of(st.none(), st.integers(0, 15)),  # steps until it is aborted
        ),
        max_size=12,
    )
)
def test_whatever_comes_and_goes_all_slots_are_free_at_the_end(arrivals):
    engine = make_engine(MODEL, 5)
    aborts: dict[int, list[str]] = {}
    step = 0
    ends = []

    def take_step() -> None:
        nonlocal step
        for request_id in aborts.pop(step, []):
            engine.abort(request_id)
        ends.extend(output.request_id for output in engine.step() if output.finish_reason is not None)
        step += 1

    for num_prompt_tokens, prefix, num_new_tokens, num_beams, pause, abort_after in arrivals:
        request = ask(
            make_prompt(num_prompt_tokens), PREFIXES[prefix], max_new_tokens=num_new_tokens, num_beams=num_beams
        )
        engine.add_request(request)
        if abort_after is not None:
            aborts.setdefault(step + abort_after, []).append(request.request_id)
        for _ in range(pause):
            take_step()
    while engine.has_work:
        take_step()
    assert engine.num_free_slots == 5
    assert len(ends) == len(set(ends)) == len(arrivals), "every request ends once"


def test_a_compile_tells_when_it_has_its_slot():
    engine = make_engine(MODEL, 2)
    engine.add_request(ask((1, 2), max_new_tokens=30, min_new_tokens=30))
    engine.step()
    engine.add_request(Compile("c", "default", token_ids=make_prompt(70)))  # read in pieces, beside the other
    told = [output for _ in range(40) for output in engine.step() if output.request_id == "c"]
    assert [type(output) for output in told] == [StepOutput, Compiled]
    assert told[0].new_token_ids == ()


def test_a_compile_that_is_not_finite_fails_and_leaves_nothing_in_its_slot():
    engine = make_engine(MODEL, 2)
    embeddings = torch.ones(20, SHAPE.n_embd)
    embeddings[3, 2] = float("nan")
    engine.add_request(Compile("c", "default", embeddings=embeddings))
    (compiled,) = engine.step()
    assert isinstance(compiled, Compiled)
    assert compiled.past_key_values is None
    assert compiled.error is not None
    assert not compiled.is_finite
    assert engine.cache.keys.isfinite().all()
    assert engine.cache.values.isfinite().all()


def test_a_poisoned_row_is_found_while_it_still_reads_its_prompt():
    huge = make_prefix(SHAPE, 4)
    huge.past_key_values.fill_(3e38)
    engine = make_engine(MODEL, 2)
    engine.add_request(ask((1,), max_new_tokens=50, min_new_tokens=50))
    engine.step()
    engine.add_request(ask(make_prompt(100), huge))
    assert [output.finish_reason for output in engine.step()] == [FinishReason.ERROR, None]
    assert engine.cache.keys.isfinite().all()


def test_large_keys_that_a_former_owner_left_do_not_overflow_half_precision():
    engine = Engine(Backbone.from_model(MODEL, dtype="float16"), max_num_seqs=2)
    mates = [ask(make_prompt(9, seed=i), PREFIXES[1], max_new_tokens=20, min_new_tokens=20) for i in range(2)]
    clean = [tokens(outputs) for outputs in run(engine, mates)]
    for sign in (1e4, -1e4):
        engine.cache.keys[:] = sign * torch.randn(engine.cache.keys.shape).sign()
        assert [tokens(outputs) for outputs in run(engine, mates, {1: 3})] == clean


def test_a_failure_that_does_not_return_costs_no_row():
    engine = make_engine(MODEL, 8)
    execute, calls = engine._runner.execute, []

    def fail_now_and_then(steps):
        calls.append(len(steps))
        if len(calls) % 7 == 3 and len(steps) > 1:
            raise torch.OutOfMemoryError("now and then")
        return execute(steps)

    engine._runner.execute = fail_now_and_then  # type: ignore[method-assign]
    assert [tokens(row) for row in run(engine, a_crowd())] == ALONE
    assert engine.num_free_slots == 8


def test_a_beam_whose_search_raises_fails_alone():
    engine = make_engine(MODEL, 8)
    crowd = a_crowd()
    beams = crowd[4]
    for request in crowd:
        engine.add_request(request)
    outputs = {request.request_id: [] for request in crowd}
    for num_steps in count():
        if not engine.has_work:
            break
        if num_steps == 2:
            engine._sequences[beams.request_id].beams = object()  # type: ignore[assignment]
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert outputs[beams.request_id][-1].finish_reason is FinishReason.ERROR
    for request, alone in zip(crowd, ALONE, strict=True):
        assert request is beams or tokens(outputs[request.request_id]) == alone


def test_beams_report_the_likeliest_tokens_when_asked():
    (outputs,) = run(make_engine(MODEL), [ask((1, 2, 3), num_beams=3, max_new_tokens=6, logprobs=4)])
    admission, output = outputs
    assert (admission.new_token_ids, admission.finish_reason) == ((), None)
    assert [token.token_id for token in output.logprobs] == list(output.new_token_ids)
    assert all(len(token.top) == 4 for token in output.logprobs)


def test_a_request_that_leaves_the_queue_is_reported_at_once_and_only_then():
    engine = make_engine(MODEL, max_num_seqs=2)
    beams, waiting = ask((1, 2), num_beams=2, max_new_tokens=4, min_new_tokens=4), ask((3,), max_new_tokens=1)
    for request in (beams, waiting):
        engine.add_request(request)
    (admission,) = engine.step()
    assert admission.request_id == beams.request_id
    assert (admission.new_token_ids, admission.finish_reason, admission.error) == ((), None, None)
    assert admission.admitted_at > 0
    assert [engine.step(), engine.step()] == [[], []]
    (answer,) = engine.step()
    assert (answer.request_id, len(answer.new_token_ids)) == (beams.request_id, 4)
    (answer,) = engine.step()
    assert (answer.request_id, len(answer.new_token_ids)) == (waiting.request_id, 1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Compile("c", "default"), "exactly one"),
        (Compile("c", "default", (1,), torch.ones(1, SHAPE.n_embd)), "exactly one"),
        (Compile("c", "default", embeddings=torch.ones(4, SHAPE.n_embd + 1)), "embeddings are"),
        (Compile("c", "default", (1,), weight=0.0), "weight"),
        (Compile("c", "default", (1,), weight=1e308), "weight"),
        (ask((1,), Prefix(torch.ones(1, 2, 3, SHAPE.n_head, SHAPE.head_dim), "r", "prefix")), "the backbone expects"),
        (ask((1,), Prefix(torch.ones(2, 2, 3, SHAPE.n_head, 5), "r", "prefix")), "the backbone expects"),
    ],
)
def test_what_does_not_fit_the_backbone_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        make_engine(MODEL).check(request_)


def test_steps_tell_prompt_tokens_from_decoded_ones():
    engine = make_engine(MODEL)
    engine.add_request(ask((1,), max_new_tokens=3, min_new_tokens=3))
    engine.step()
    assert engine.last_step is not None
    assert (engine.last_step.num_prefill_tokens, engine.last_step.num_decode_tokens) == (1, 0)
    engine.step()
    assert (engine.last_step.num_prefill_tokens, engine.last_step.num_decode_tokens) == (0, 1)


class PackedProducts(TorchDispatchMode):
    """Notes the sizes of oneDNN's: rows, outputs, inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.mkldnn._linear_pointwise.default:
            self.sizes.add((*result.shape, args[0].shape[1]))
        return result


def test_a_step_in_which_rows_decode_asks_for_no_product_that_a_warm_engine_has_not_made():
    engine = make_engine(MODEL, max_num_seqs=20)
    with PackedProducts() as beforehand:
        engine.warm_up()
    decoding = ask((1, 2), max_new_tokens=250, min_new_tokens=250)
    others = [ask(make_prompt(3 * i + 1), max_new_tokens=2 * i + 2) for i in range(40)]
    with PackedProducts() as meanwhile:
        run(engine, [decoding, *others], {i: 1 + i // 20 * 50 for i in range(1, 41)})
    assert len(meanwhile.sizes) > 20
    assert meanwhile.sizes <= beforehand.sizes
