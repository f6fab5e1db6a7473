"""The engine's tokens are those of transformers, run alone, whatever else is in the batch."""

import random

import pytest
import torch

from batching.attention import NewTokens, plan_attention
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache
from tests.batching import oracle
from tests.batching.support import ask, make_engine, make_model, make_prefix, make_prompt, run, tokens

SHAPES = [
    {"n_layer": 2, "n_head": 4, "head_dim": 8},
    {"n_layer": 3, "n_head": 3, "head_dim": 16},
    {"n_layer": 4, "n_head": 5, "head_dim": 4, "vocab_size": 301},
    {"n_layer": 2, "n_head": 1, "head_dim": 24, "scale_attn_by_inverse_layer_idx": True},
    {"n_layer": 2, "n_head": 7, "head_dim": 12, "activation_function": "relu", "scale_attn_weights": False},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_of_a_mixed_batch_is_that_of_the_row_alone(shape):
    model = make_model(**shape)
    engine = make_engine(model, max_num_seqs=12)
    chooser = random.Random(1)
    vocab_size = model.config.vocab_size
    prefixes = [make_prefix(engine.backbone.shape, 1 + 63 * i // 15, seed=i) for i in range(16)]
    requests = []
    for i in range(32):
        prompt = make_prompt(chooser.randint(1, 100), vocab_size, seed=i)
        requests.append(ask(prompt, prefixes[i % 16], max_new_tokens=chooser.randint(1, 40)))
    arrivals = {i: chooser.randint(0, 60) for i in range(32)}
    answers = [tokens(outputs) for outputs in run(engine, requests, arrivals)]
    assert answers == [oracle.generate(model, request) for request in requests]
    assert engine.num_free_slots == 12


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_within_1e_4_of_the_models_own(shape):
    model = make_model(**shape)
    backbone = Backbone.from_model(model)
    cache = KVCache(backbone.shape, 2, 200, torch.float32, torch.device("cpu"))
    prefix = make_prefix(backbone.shape, 9)
    prompt = make_prompt(50, model.config.vocab_size)
    cache.write_prefix(1, prefix.past_key_values)
    pieces = []
    for start, length in ((0, 20), (20, 29), (49, 1)):
        plan = plan_attention([NewTokens(1, 9 + start, length)], cache)
        hidden_states = backbone.forward(backbone.embed(torch.tensor(prompt[start : start + length])), plan, cache)
        pieces.append(backbone.logits(hidden_states))
    torch.testing.assert_close(
        torch.cat(pieces), oracle.logits(model, prefix.past_key_values, list(prompt)), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("num_beams", [2, 3, 5, 11])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": -0.5, "early_stopping": True},
        {"repetition_penalty": 1.5, "min_new_tokens": 6},
    ],
)
def test_beams_are_those_of_transformers(num_beams, params):
    model = make_model(n_layer=2, vocab_size=23)  # a small vocabulary, so that hypotheses often end
    engine = make_engine(model, max_num_seqs=11)
    prefixes = [make_prefix(engine.backbone.shape, length, seed=length) for length in (1, 5, 12)]
    requests = [
        ask(make_prompt(3 + 7 * i, 23, seed=i), prefixes[i % 3], num_beams=num_beams, max_new_tokens=25, **params)
        for i in range(6)
    ] + [ask(make_prompt(5, 23, seed=9), prefixes[0], max_new_tokens=30)]
    answers = [tokens(outputs) for outputs in run(engine, requests, {i: 2 * i for i in range(7)})]
    assert answers == [oracle.generate(model, request) for request in requests]
    assert engine.num_free_slots == 11


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty_and_min_new_tokens_are_those_of_transformers(penalty):
    model = make_model(vocab_size=31)
    engine = make_engine(model)
    prefix = make_prefix(engine.backbone.shape, 4)
    requests = [
        ask(make_prompt(6, 31, seed=i), prefix, repetition_penalty=penalty, max_new_tokens=30, min_new_tokens=10)
        for i in range(8)
    ]
    answers = [tokens(outputs) for outputs in run(engine, requests)]
    assert answers == [oracle.generate(model, request) for request in requests]
