"""Sampling draws what the softmax says, and the same whoever else is in the call."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from batching.sampler import SamplingRow, draw_uniforms, own_logprobs, sample
from batching.types import RequestError, SamplingParams

VOCAB_SIZE = 40
NUM_DRAWS = 4000
EOS = 0


def draw(logits: torch.Tensor, params: SamplingParams, seed: int, num_draws: int) -> list[int]:
    """The first tokens that a row of these params would say if its logits never changed."""
    uniforms = draw_uniforms(seed, 0, num_draws).tolist()
    return [sample(logits[None], [SamplingRow(params, t, uniforms[t])], EOS)[0] for t in range(num_draws)]


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
    drawn = draw(logits, params, 5, NUM_DRAWS)
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
    drawn = draw(logits, params, 1, 500)
    probs = expected_probs(logits, params)
    assert all(probs[token_id] > 0 for token_id in drawn)
    ranks = logits.argsort(descending=True).argsort()[drawn]
    assert ranks.max() > 256, "nothing beyond the 256 likeliest was ever drawn"
    assert abs(ranks.float().mean() - (probs * logits.argsort(descending=True).argsort()).sum()) < 100


def test_a_rows_draw_does_not_depend_on_its_mates():
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    rows = [
        SamplingRow(SamplingParams(temperature=0.8, top_k=5), 7, 0.3),
        SamplingRow(SamplingParams(), 7),
        SamplingRow(SamplingParams(temperature=1.0), 2, 0.9),
        SamplingRow(SamplingParams(temperature=1.2, top_p=0.6, repetition_penalty=1.4), 7, 0.5, (3, 4)),
        SamplingRow(SamplingParams(repetition_penalty=2.0, min_new_tokens=9), 3, 0.0, (1, 2, 3)),
    ]
    crowd = sample(logits, rows, EOS)
    assert crowd == [sample(logits[i : i + 1], [row], EOS)[0] for i, row in enumerate(rows)]


@pytest.mark.parametrize("uniform", [0.0, 1.0])
@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.5}])
def test_the_ends_of_the_random_range_find_tokens_that_have_mass(uniform, params):
    logits = torch.full((1, VOCAB_SIZE), -1e4)
    logits[0, 11:14] = torch.tensor([1.0, 3.0, 2.0])
    row = SamplingRow(SamplingParams(temperature=1.0, **params), 0, uniform)
    assert sample(logits, [row], EOS)[0] in (11, 12, 13)


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
def test_the_coldest_temperature_is_greedy(temperature):
    logits = torch.randn(8, VOCAB_SIZE, generator=torch.Generator().manual_seed(2)) * 30
    rows = [SamplingRow(SamplingParams(temperature=temperature, top_p=p), 0, 0.99) for p in (1.0, 0.5) * 4]
    assert sample(logits, rows, EOS) == logits.argmax(dim=-1).tolist()


def test_the_hottest_temperature_still_forbids_what_is_forbidden():
    params = SamplingParams(temperature=1e39, min_new_tokens=10)
    logits = torch.zeros(1, VOCAB_SIZE)
    assert EOS not in [sample(logits, [SamplingRow(params, 0, u / 50)], EOS)[0] for u in range(51)]


def test_the_random_stream_is_a_function_of_seed_choice_and_index():
    assert (draw_uniforms(7, 0, 50)[:20] == draw_uniforms(7, 0, 20)).all()
    assert (draw_uniforms(7, 0, 20) != draw_uniforms(7, 1, 20)).any()
    assert (draw_uniforms(7, 0, 5) == np.random.Generator(np.random.Philox(key=7)).random(5)).all()
    assert len({tuple(draw_uniforms(seed, 0, 5)) for seed in (0, 1, 2**64 - 1)}) == 3


def test_min_new_tokens_forbids_the_end_until_then():
    params = SamplingParams(min_new_tokens=3, max_new_tokens=5)
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 0], logits[0, 9] = 5.0, 4.0
    said = [sample(logits, [SamplingRow(params, t)], EOS)[0] for t in range(5)]
    assert said == [9, 9, 9, 0, 0]
    assert logits[0, 0] == 5.0, "the model's own logits are left alone"


def test_logprobs_are_the_models_own_with_as_many_alternatives_as_asked():
    logits = torch.randn(3, VOCAB_SIZE)
    own = logits.log_softmax(-1)
    assert len(own_logprobs(logits[:1, :7], [4], [20])[0].top) == 7, "no more than the vocabulary has"
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
        {"repetition_penalty": 1e-40},
        {"length_penalty": 1100.0},
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
