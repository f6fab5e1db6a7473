"""Sampling draws what the softmax says, and the same whoever else is in the call."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from batching.sampler import Sampler, SamplingRow, draw_uniforms, own_logprobs
from batching.types import RequestError, SamplingParams

VOCAB_SIZE = 40
NUM_DRAWS = 4000


def make_sampler(num_slots: int = 4, vocab_size: int = VOCAB_SIZE, max_model_len: int = NUM_DRAWS) -> Sampler:
    return Sampler(num_slots, max_model_len, vocab_size, eos_token_id=0, device=torch.device("cpu"))


def expected_probs(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What transformers' warpers leave of one row's logits, as probabilities."""
    warpers = [TemperatureLogitsWarper(params.temperature)]
    warpers += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    scores = logits[None]
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(dim=-1)[0]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 12, "top_p": 0.7},
        {"temperature": 1.0, "top_p": 1e-6},
    ],
)
def test_draws_are_distributed_as_the_warped_softmax(params):
    params = SamplingParams(max_new_tokens=NUM_DRAWS, seed=5, **params)
    logits = torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(3)) * 1.5
    sampler = make_sampler()
    sampler.admit(2, params, (1,), seed=5)
    drawn = [sampler.sample(logits[None], [SamplingRow(2, params, t)])[0] for t in range(NUM_DRAWS)]
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    expected = expected_probs(logits, params).double().numpy() * NUM_DRAWS
    kept = expected > 0
    assert counts[~kept].sum() == 0, "a token outside top-k or top-p was drawn"
    common = kept & (expected >= 5)
    if common.sum() > 1:
        scale = counts[common].sum() / expected[common].sum()
        assert chisquare(counts[common], expected[common] * scale).pvalue > 1e-3


def test_a_nucleus_wider_than_the_candidates_takes_the_exact_way():
    vocab_size = 2000
    params = SamplingParams(max_new_tokens=500, temperature=1.0, top_p=0.9)
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(1)) * 0.1  # almost flat
    sampler = make_sampler(vocab_size=vocab_size)
    sampler.admit(0, params, (1,), seed=1)
    drawn = [sampler.sample(logits[None], [SamplingRow(0, params, t)])[0] for t in range(500)]
    probs = expected_probs(logits, params)
    assert all(probs[token_id] > 0 for token_id in drawn)
    ranks = logits.argsort(descending=True).argsort()[drawn]
    assert ranks.max() > 256, "nothing beyond the 256 likeliest was ever drawn"
    assert abs(ranks.float().mean() - (probs * logits.argsort(descending=True).argsort()).sum()) < 100


def test_a_rows_draw_does_not_depend_on_its_mates():
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    mixed = [
        SamplingParams(temperature=0.8, top_k=5),
        SamplingParams(),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.2, top_p=0.6, repetition_penalty=1.4),
    ]
    sampler = make_sampler()
    for slot, params in enumerate(mixed):
        sampler.admit(slot, params, (3, 4), seed=slot)
    crowd = sampler.sample(logits, [SamplingRow(slot, params, 7) for slot, params in enumerate(mixed)])
    for slot, params in enumerate(mixed):
        alone = make_sampler()
        alone.admit(3 - slot, params, (3, 4), seed=slot)
        assert alone.sample(logits[slot : slot + 1], [SamplingRow(3 - slot, params, 7)]) == [crowd[slot]]


def test_a_new_owner_of_a_slot_inherits_nothing():
    penalised = SamplingParams(repetition_penalty=5.0)
    sampler = make_sampler()
    sampler.admit(1, penalised, tuple(range(20)), seed=0)
    sampler.sample(torch.ones(1, VOCAB_SIZE), [SamplingRow(1, penalised, 0)])
    sampler.admit(1, penalised, (39,), seed=0)
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 5] = 1.0
    assert sampler.sample(logits, [SamplingRow(1, penalised, 0)]) == [5]


def test_the_random_stream_is_a_function_of_seed_choice_and_index():
    assert (draw_uniforms(7, 0, 50)[:20] == draw_uniforms(7, 0, 20)).all()
    assert (draw_uniforms(7, 0, 20) != draw_uniforms(7, 1, 20)).any()
    first = np.random.Generator(np.random.Philox(key=7)).random(5).astype(np.float32)
    assert (draw_uniforms(7, 0, 5) == first).all()


def test_min_new_tokens_forbids_the_end_until_then():
    params = SamplingParams(min_new_tokens=3, max_new_tokens=5)
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 0], logits[0, 9] = 5.0, 4.0
    sampler = make_sampler()
    said = [sampler.sample(logits, [SamplingRow(0, params, t)])[0] for t in range(5)]
    assert said == [9, 9, 9, 0, 0]
    assert logits[0, 0] == 5.0, "the model's own logits are left alone"


def test_logprobs_are_the_models_own_with_as_many_alternatives_as_asked():
    logits = torch.randn(3, VOCAB_SIZE)
    own = logits.log_softmax(-1)
    first, none, second = own_logprobs(logits, [4, 5, 6], [0, None, 3])
    assert none is None
    assert first is not None
    assert second is not None
    assert first.logprob == pytest.approx(float(own[0, 4]))
    assert first.top == ()
    assert [token_id for token_id, _ in second.top] == own[2].topk(3).indices.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": 65},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 257},
        {"top_p": 0.0},
        {"top_p": 1.0001},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**64},
        {"logprobs": 21},
        {"num_beams": 17},
        {"num_beams": 2, "temperature": 0.5},
        {"length_penalty": float("inf")},
    ],
)
def test_parameters_out_of_range_are_refused_with_their_name(wrong):
    with pytest.raises(RequestError, match=next(reversed(wrong))):
        SamplingParams(**wrong)
