"""Steps over fixed shapes: they say what ordinary steps say, whoever comes, goes or fails.

Without CUDA the same steps run as plain calls, which are made to leave their results as graphs do. What can be said of
graphs only where there are some is marked `gpu`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from batching.attention import AttentionPlan, NewTokens, SpanPlan, StaticPlan
from batching.decode_graphs import DecodeGraphs, NextToken
from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache
from batching.types import Compile, Compiled, FinishReason
from tests.batching import oracle, poison
from tests.batching.support import ask, ask_mix, make_model, make_prefix, make_prompt, run, tokens
from tests.batching.tagged import TaggedBackbone
from tests.batching.test_engine import ALONE, PREFIXES, SHAPE, a_crowd
from tests.batching.test_engine import poison as poison_slots
from tests.batching.test_state_machine import NUM_SLOTS, EngineMachine

MODEL = make_model()
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def graph_engine(max_num_seqs: int = 8, dtype: str = "float32") -> Engine:
    engine = Engine(Backbone.from_model(MODEL, dtype=dtype), max_num_seqs, has_decode_graphs=True)
    let_results_be_overwritten(graphs_of(engine))
    return engine


def graphs_of(engine: Engine) -> DecodeGraphs:
    graphs = engine._runner._decode_graphs
    assert graphs is not None
    return graphs


def let_results_be_overwritten(graphs: DecodeGraphs) -> None:
    """Run every step once, as a capture does; from then on its results lie at one place, and all others are lost."""
    places: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for size, decode in graphs._graphs.items():
        graphs._upload([], size[0])
        places[size] = decode()

    def replay(size: tuple[int, int], decode: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        results = decode()
        for place in itertools.chain(*places.values()):
            place.fill_(-1)
        for place, result in zip(places[size], results, strict=True):
            place.copy_(result)
        return places[size]

    graphs._graphs = {size: partial(replay, size, decode) for size, decode in graphs._graphs.items()}


def watch(engine: Engine) -> tuple[list[list[NextToken]], list[list[NextToken]]]:
    """The rows of each step that runs by graphs from now on, and those that are uploaded."""
    graphs = graphs_of(engine)
    own_run, own_upload = graphs.run, graphs._upload
    ran: list[list[NextToken]] = []
    uploaded: list[list[NextToken]] = []

    def watched_run(rows: list[NextToken]) -> tuple[Tensor, list[bool]]:
        ran.append(rows)
        return own_run(rows)

    def watched_upload(rows: list[NextToken], num_slots: int) -> None:
        uploaded.append(rows)
        own_upload(rows, num_slots)

    graphs.run, graphs._upload = watched_run, watched_upload  # type: ignore[method-assign]
    return ran, uploaded


# -- the same tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0, 1, 3])
def test_rows_of_every_kind_say_what_they_say_in_ordinary_steps(pause: int) -> None:
    engine = graph_engine(6)
    ran, _ = watch(engine)
    outputs = run(engine, a_crowd(), {i: pause * i for i in range(8)})
    assert [tokens(row) for row in outputs] == ALONE
    assert len(ran) > 20


@pytest.mark.parametrize("num_prompt_tokens", [60, 100])
def test_rows_are_read_far_enough_as_they_grow_out_of_one_graph_into_the_next(num_prompt_tokens: int) -> None:
    request = ask(make_prompt(num_prompt_tokens), PREFIXES[3], max_new_tokens=123, min_new_tokens=123)
    (outputs,) = run(graph_engine(), [request])
    assert tokens(outputs) == oracle.generate(MODEL, request)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 8, 13])
def test_any_number_of_rows_says_what_it_says_in_ordinary_steps(num_rows: int) -> None:
    requests = [ask(make_prompt(5 + i, seed=i), PREFIXES[i % 4], max_new_tokens=12) for i in range(num_rows)]
    outputs = run(graph_engine(13), requests)
    assert [tokens(row) for row in outputs] == [oracle.generate(MODEL, request) for request in requests]


def test_a_mixture_says_what_it_says_in_ordinary_steps() -> None:
    request = ask_mix(make_prompt(7), [(PREFIXES[0], 1.0), (PREFIXES[2], 2.0), (None, 0.5)], max_new_tokens=12)
    beside = ask(make_prompt(3), max_new_tokens=20, temperature=0.7, seed=3)
    outputs, _ = run(graph_engine(), [request, beside])
    assert tokens(outputs) == oracle.generate_mixture(MODEL, request)


def test_log_probabilities_are_those_of_ordinary_steps() -> None:
    """At the last position of a graph, too, and at the first one beyond."""
    request = ask(make_prompt(110), PREFIXES[2], max_new_tokens=20, min_new_tokens=20, logprobs=3)
    ours, ordinary = (
        [logprob for output in run(engine, [request])[0] for logprob in output.logprobs]
        for engine in (graph_engine(), Engine(Backbone.from_model(MODEL), 8))
    )
    assert [each.token_id for each in ours] == [each.token_id for each in ordinary]
    assert [each.logprob for each in ours] == pytest.approx([each.logprob for each in ordinary], abs=1e-5)


def test_a_compiled_prompt_of_one_embedding_is_that_of_ordinary_steps() -> None:
    compiled = []
    for engine in (graph_engine(), Engine(Backbone.from_model(MODEL), 8)):
        engine.add_request(ask((1, 5), max_new_tokens=9))
        engine.step()
        engine.add_request(Compile("c", "default", embeddings=torch.ones(1, SHAPE.n_embd)))
        compiled += [output.past_key_values for output in engine.step() if isinstance(output, Compiled)]
    assert compiled[0].equal(compiled[1])


def test_one_layer_gives_the_bits_of_the_ordinary_plan_over_the_same_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [4, 31, 17, 25]
    qkv = torch.randn(4, 3, SHAPE.n_head, SHAPE.head_dim, generator=generator)
    keys, values = torch.randn(2, 5, SHAPE.n_head, 64, SHAPE.head_dim, generator=generator)
    same_keys, same_values = keys.clone(), values.clone()
    positions = torch.tensor(starts)
    ordinary = SpanPlan.of([NewTokens(slot, start, 1) for slot, start in enumerate(starts)], positions)
    static = StaticPlan.of(positions, torch.arange(4), num_positions=32)
    assert static.attend(qkv, keys, values).equal(ordinary.attend(qkv, same_keys, same_values))
    assert keys.equal(same_keys)
    assert values.equal(same_values)


# -- what lies on the device -------------------------------------------------------------------------------------------


class HostTensors(TorchDispatchMode):
    """Counts the tensors that are made of the host's numbers."""

    num_made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_made += func is torch.ops.aten.lift_fresh.default
        return func(*args, **kwargs or {})


def test_a_step_of_the_same_greedy_rows_uploads_nothing() -> None:
    engine = graph_engine()
    for i in range(3):
        engine.add_request(ask(make_prompt(4, seed=i), PREFIXES[i], max_new_tokens=20, min_new_tokens=20))
    engine.step()
    with HostTensors() as first:
        engine.step()
    assert first.num_made == 1
    for _ in range(10):
        with HostTensors() as later:
            assert all(output.new_token_ids for output in engine.step())
        assert later.num_made == 0


def test_rows_are_uploaded_when_one_comes_or_goes_or_does_not_take_the_likeliest_token() -> None:
    engine = graph_engine()
    ran, uploaded = watch(engine)
    run(engine, [ask((1, 5), max_new_tokens=9), ask((6,), max_new_tokens=5)], {1: 2})
    assert [len(rows) for rows in ran] == [1, 2, 2, 2, 2, 2, 1, 1]  # the first step read a prompt of two tokens
    assert [len(rows) for rows in uploaded] == [1, 2, 1]
    ran.clear()
    uploaded.clear()
    run(engine, [ask((1, 2), max_new_tokens=9, temperature=5.0, seed=1)])
    assert uploaded == ran


class DeviceOnly(TorchDispatchMode):
    """Every operation takes and gives tensors of the device alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for each in tree_leaves((args, kwargs, result)):
            assert not isinstance(each, Tensor) or each.is_meta, f"{func} has a tensor of the host"
        return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_needs_no_number_of_the_hosts_and_gives_it_none(dtype: str) -> None:
    """On a device without numbers: whatever asks for one raises. So nothing stands in the way of a capture."""
    engine = Engine(Backbone.from_model(MODEL, device="meta", dtype=dtype), 8, has_decode_graphs=True)
    for decode in graphs_of(engine)._graphs.values():
        with DeviceOnly():
            logits, told = decode()
        assert logits.shape[1] == 97
        assert told.shape == (2, logits.shape[0])


def test_there_are_few_graphs_and_the_largest_hold_all() -> None:
    graphs = graphs_of(graph_engine(11))._graphs
    assert sorted(graphs) == [(rows, positions) for rows in (1, 2, 4, 8, 11) for positions in (128, 256)]


# -- isolation ---------------------------------------------------------------------------------------------------------


def test_nan_in_free_slots_and_large_numbers_above_live_rows_change_nothing() -> None:
    engine = graph_engine(6)
    poison_slots(engine)
    outputs = run(engine, a_crowd() + a_crowd(), {i: 2 * i for i in range(16)})
    assert [tokens(row) for row in outputs] == ALONE + ALONE


def test_slots_that_are_not_in_the_step_are_left_as_they_are() -> None:
    engine = graph_engine(8)
    cache, graphs = engine.cache, graphs_of(engine)
    cache.keys.normal_()
    cache.values.normal_()
    before = cache.keys.clone(), cache.values.clone()
    rows = [NextToken(5, 40, 3), NextToken(2, 9, 4)]
    graphs.run(rows)
    graphs.run(graphs._next)
    for now, then in zip((cache.keys, cache.values), before, strict=True):
        changed = (now != then).any(dim=-1).any(dim=2).any(dim=0)[:8].nonzero()
        assert changed.tolist() == [[2, 9], [2, 10], [5, 40], [5, 41]]


def test_large_keys_that_a_former_owner_left_do_not_overflow_half_precision() -> None:
    engine = graph_engine(2, "float16")
    mates = [ask(make_prompt(9, seed=i), PREFIXES[1], max_new_tokens=20, min_new_tokens=20) for i in range(2)]
    clean = [tokens(outputs) for outputs in run(engine, mates)]
    for sign in (1e4, -1e4):
        engine.cache.keys[:] = sign * torch.randn(engine.cache.keys.shape).sign()
        assert [tokens(outputs) for outputs in run(engine, mates, {1: 3})] == clean


def test_a_row_whose_logits_are_not_finite_fails_alone_and_leaves_nothing() -> None:
    engine = graph_engine(6)
    culprit = ask((1, 2, 3), PREFIXES[0], max_new_tokens=30, min_new_tokens=30)
    graphs = graphs_of(engine)
    own_run, told = graphs.run, []

    def poisoned_run(rows: list[NextToken]) -> tuple[Tensor, list[bool]]:
        if len(told) == 2:
            engine.cache.values[1, engine._sequences[culprit.request_id].slots[0], :, 0] = math.nan
        logits, are_finite = own_run(rows)
        told.append(are_finite)
        return logits, are_finite

    graphs.run = poisoned_run  # type: ignore[method-assign]
    failed, *outputs = run(engine, [culprit, *a_crowd()])
    assert sorted(told[2]) == [False, *[True] * (len(told[2]) - 1)]
    assert len(told[2]) > 1
    assert (failed[-1].finish_reason, failed[-1].not_finite_row) == (FinishReason.ERROR, 0)
    assert [tokens(each) for each in outputs] == ALONE
    assert engine.cache.keys.isfinite().all()
    assert engine.cache.values.isfinite().all()


def test_steps_that_are_run_again_in_halves_say_the_same() -> None:
    """They raise before or after the device has gone on; what was uploaded for them is still there."""
    engine = graph_engine(8)
    ran, _ = watch(engine)
    graphs = graphs_of(engine)
    num_raised = 0

    def decode_or_raise(decode: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        nonlocal num_raised
        if len(ran) % 4 != 3 or len(ran[-1]) == 1:
            return decode()
        num_raised += 1
        if num_raised % 2 == 0:
            decode()
        raise torch.OutOfMemoryError("now and then")

    graphs._graphs = {size: partial(decode_or_raise, decode) for size, decode in graphs._graphs.items()}
    assert [tokens(row) for row in run(engine, a_crowd(), {i: i for i in range(8)})] == ALONE
    assert num_raised >= 5


def test_what_was_uploaded_for_a_step_that_raised_is_not_taken_for_what_the_device_has_gone_on_to() -> None:
    graphs = graphs_of(graph_engine(2))
    graphs.run([NextToken(1, 0, 5)])
    (following,) = graphs._next
    decode = graphs._graphs[2, 128]

    def fail() -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("once")

    graphs._graphs[2, 128] = fail
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run([NextToken(0, 0, 7), following])
    graphs._graphs[2, 128] = decode
    logits, _ = graphs.run([following])
    again, _ = graphs.run([following])  # it goes back, so it is uploaded
    assert logits.equal(again)


def test_a_row_that_is_aborted_before_its_prefix_was_read_leaves_nothing_of_it() -> None:
    huge = make_prefix(SHAPE, 4)
    huge.past_key_values.fill_(3e38)  # which float16 does not have
    engine = graph_engine(3, "float16")
    engine.add_request(ask((1,), max_new_tokens=20, min_new_tokens=20))
    engine.step()
    engine.add_request(ask(make_prompt(100), max_new_tokens=1))
    unlucky = ask((1, 2), huge)
    engine.add_request(unlucky)
    engine.step()
    assert engine.num_free_slots == 0
    assert not engine.cache.keys.isfinite().all()
    engine.abort(unlucky.request_id)
    assert engine.cache.keys.isfinite().all()
    assert engine.cache.values.isfinite().all()


def test_a_poisoned_rows_mates_say_what_they_say_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    poison.alone("float32")  # by ordinary steps
    monkeypatch.setattr(poison, "make_engine", lambda model, *size: graph_engine(*size))
    outcomes = poison.poison_many(num_trials=4 * len(poison.KINDS), seed=2)
    assert sum(outcome.num_mates_changed for outcome in outcomes) == 0
    assert all(outcome.is_contained for outcome in outcomes)


# -- whatever comes, goes, fails and is aborted ------------------------------------------------------------------------


@dataclass(frozen=True)
class LiveRows:
    """The rows of a plan that are in the step."""

    slots: Tensor
    positions: Tensor


class StaticTaggedBackbone(TaggedBackbone):
    """Computes only the rows that are in the step: what becomes of the others is nobody's business."""

    def forward(self, embeddings: Tensor, plan: AttentionPlan, cache: KVCache) -> Tensor:
        if not isinstance(plan, StaticPlan):
            return super().forward(embeddings, plan, cache)
        is_live = plan.slots != cache.spare_slot
        live = LiveRows(plan.slots[is_live], plan.positions[is_live])
        states = torch.full_like(embeddings, math.nan)
        states[is_live] = super().forward(embeddings[is_live], live, cache)  # type: ignore[arg-type]
        return states


class GraphMachine(EngineMachine):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = StaticTaggedBackbone()
        self.engine = Engine(self.backbone, NUM_SLOTS, has_decode_graphs=True)  # type: ignore[arg-type]
        let_results_be_overwritten(graphs_of(self.engine))
        self.engine.cache.keys[:] = self.engine.cache.values[:] = 1e4


class TestGraphEngine(GraphMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


# -- where there is a graph --------------------------------------------------------------------------------------------


def gpu_engine(dtype: str, has_decode_graphs: bool) -> Engine:
    return Engine(Backbone.from_model(MODEL, device="cuda:0", dtype=dtype), 6, has_decode_graphs=has_decode_graphs)


@pytest.mark.gpu
@needs_cuda
def test_captured_steps_say_what_ordinary_steps_say_on_a_gpu() -> None:
    for pause in (0, 3):
        captured, ordinary = (
            run(gpu_engine("float32", has_graphs), a_crowd(), {i: pause * i for i in range(8)})
            for has_graphs in (True, False)
        )
        assert [tokens(row) for row in captured] == [tokens(row) for row in ordinary]
        assert all(row[-1].finish_reason != FinishReason.ERROR for row in captured)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_captured_step_gives_the_bits_of_the_plain_call(dtype: str) -> None:
    captured, plain = gpu_engine(dtype, True), gpu_engine(dtype, True)
    graphs = graphs_of(plain)
    graphs._graphs = {size: partial(graphs._decode, *size) for size in graphs._graphs}
    by_capture, by_call = (run(engine, [*a_crowd(), ask((1,), logprobs=5)]) for engine in (captured, plain))
    for ours, theirs in zip(by_capture, by_call, strict=True):
        assert [(each.new_token_ids, each.logprobs) for each in ours] == [
            (each.new_token_ids, each.logprobs) for each in theirs
        ]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_arrives_in_its_slot_on_a_gpu_as_on_a_cpu(dtype: str) -> None:
    prefix = make_prefix(SHAPE, 10).past_key_values
    there, here = (KVCache(SHAPE, 2, 32, getattr(torch, dtype), device) for device in (torch.device("cuda:0"), CPU))
    for cache in (there, here):
        cache.write_prefix(1, prefix)
    assert there.keys.cpu().equal(here.keys)
    assert there.values.cpu().equal(here.values)
