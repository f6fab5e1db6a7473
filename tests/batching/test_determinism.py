"""In the deterministic mode a row has the same bits whoever its mates are, and whichever slot it has."""

import random
from dataclasses import replace

import pytest
import torch

from batching import kernels, linear
from batching.checkpoint import BackboneError
from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.linear import BLOCK_ROWS
from batching.types import Request, StepOutput
from tests.batching.support import ask, make_model, make_prefix, make_prompt, run

MODEL = make_model(n_layer=2, n_head=4, head_dim=64, vocab_size=1031)
NUM_NEEDLES = 250  # of each way to multiply

WAYS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1},
    {"num_beams": 2},
    {"prompt_logprobs": True},
]

needs_kernels = pytest.mark.skipif(kernels._library is None, reason="the kernels were not compiled here")
needs_linear = pytest.mark.skipif(
    not kernels.can_multiply(torch.bfloat16, torch.device("cpu"), 256),
    reason="the processor has no AVX512-BF16, or AMX",
)
needs_halves = pytest.mark.skipif(
    not hasattr(kernels._linear, "linear_float16_to_float32"), reason="the processor has no AVX512-FP16"
)


def make_needles(backbone: Backbone, num_needles: int) -> list[Request]:
    chance = random.Random(0)
    prefixes = [None, *(make_prefix(backbone.shape, length, seed=length) for length in (1, 7, 30))]
    return [
        ask(
            make_prompt(chance.randrange(1, 60), 1031, seed=i),
            chance.choice(prefixes),
            max_new_tokens=chance.randrange(1, 7),
            seed=i,
            logprobs=3,
            **WAYS[i % len(WAYS)],
        )
        for i in range(num_needles)
    ]


def said(outputs: list[StepOutput]) -> list[tuple[object, ...]]:
    """Tokens with their log-probabilities, each to its last bit."""
    return [(each.new_token_ids, each.logprobs, each.prompt_logprobs) for each in outputs if each.new_token_ids]


def check_needles(backbone: Backbone) -> None:
    """Each says the same bits alone and in a crowd."""
    needles = make_needles(backbone, NUM_NEEDLES)
    alone = Engine(backbone, max_num_seqs=2)
    expected = [said(run(alone, [needle])[0]) for needle in needles]
    crowd = Engine(backbone, max_num_seqs=BLOCK_ROWS + 5)
    renamed = [replace(needle, request_id=f"{needle.request_id} again") for needle in needles]
    chance = random.Random(1)
    arrivals = {i: chance.randrange(NUM_NEEDLES) for i in range(NUM_NEEDLES)}
    assert [said(outputs) for outputs in run(crowd, renamed, arrivals)] == expected


@needs_kernels
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "plain"])
def test_no_bit_depends_on_a_rows_mates_or_on_its_slot(is_packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain products show that it takes the mode: without it their bits are others in another batch."""
    if not is_packed:
        monkeypatch.setattr(linear, "_can_pack", lambda dtype: False)
    check_needles(Backbone.from_model(MODEL, is_deterministic=True))


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "is_half"),
    [
        ("int8", False),
        pytest.param("bfloat16", False, marks=needs_linear),
        pytest.param("bfloat16", True, marks=[needs_linear, needs_halves]),
    ],
    ids=["int8", "bfloat16", "bfloat16 as halves"],
)
def test_our_own_products_have_the_same_bits_in_any_mode(
    dtype: str, is_half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "IS_HALF_FASTER", is_half)
    check_needles(Backbone.from_model(MODEL, dtype=dtype))


def test_where_the_kernels_have_no_code_it_is_refused() -> None:
    with pytest.raises(BackboneError, match="the same bits in every batch need the compiled kernels"):
        Backbone.from_model(make_model(head_dim=9), is_deterministic=True)
