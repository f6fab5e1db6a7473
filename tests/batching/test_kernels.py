"""The compiled loops compute what torch computes; what is not a row's own cannot reach it, whichever way is taken."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from batching import kernels
from batching.attention import KernelPlan, NewTokens, SpanPlan
from batching.kv_cache import KVCache
from prefix_store.prefix import BackboneShape

NUM_SLOTS, NUM_HEADS, MAX_MODEL_LEN = 6, 3, 90
# A row that starts, one that decodes far up, two neighbours that do, one that reads a piece; slot 3 is free.
ROWS = [NewTokens(4, 0, 1), NewTokens(0, 80, 1), NewTokens(1, 9, 1), NewTokens(2, 13, 1), NewTokens(5, 20, 17)]
NUM_TOKENS = sum(row.num_tokens for row in ROWS)

needs_kernels = pytest.mark.skipif(kernels._library is None, reason="the kernels were not compiled")
PLANS = [pytest.param(KernelPlan, marks=needs_kernels), SpanPlan]
SIZES = [(8, torch.float32), (64, torch.float32), (64, torch.bfloat16)]


def make_cache(head_dim: int, dtype: torch.dtype, outside: float = 0.0) -> KVCache:
    """Random entries below each row's start; `outside` above it, and NaN in the free slot if that is not 0."""
    cache = KVCache(BackboneShape(1, NUM_HEADS, head_dim, 256), NUM_SLOTS, MAX_MODEL_LEN, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for entries in (cache.keys[0], cache.values[0]):
        entries[:] = torch.randn(entries.shape, generator=generator)
        for row in ROWS:
            entries[row.slot, :, row.start :] = outside
        entries[3] = float("nan") if outside else 0.0
    return cache


def make_qkv(head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    qkv = torch.randn(NUM_TOKENS, 3, NUM_HEADS, head_dim, generator=torch.Generator().manual_seed(2))
    qkv[:, 0] *= head_dim**-0.5
    return qkv.to(dtype)


def attend(plan: type[KernelPlan | SpanPlan], qkv: torch.Tensor, cache: KVCache) -> torch.Tensor:
    positions = torch.tensor([row.start + t for row in ROWS for t in range(row.num_tokens)])
    return plan.of(ROWS, positions).attend(qkv, cache.keys[0], cache.values[0])


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("head_dim", kernels.HEAD_DIMS)
def test_the_compiled_attention_is_that_of_torch_in_float32(head_dim, dtype, tolerance):
    qkv, ours, theirs = make_qkv(head_dim, dtype), make_cache(head_dim, dtype), make_cache(head_dim, dtype)
    wide = KVCache(BackboneShape(1, NUM_HEADS, head_dim, 256), NUM_SLOTS, MAX_MODEL_LEN, torch.float32, qkv.device)
    wide.keys.copy_(theirs.keys)
    wide.values.copy_(theirs.values)
    torch.testing.assert_close(
        attend(KernelPlan, qkv, ours).float(), attend(SpanPlan, qkv.float(), wide), rtol=tolerance, atol=tolerance
    )
    assert torch.equal(ours.keys.float(), wide.keys), "the new keys stand where they belong"
    assert torch.equal(ours.values.float(), wide.values)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("head_dim", "dtype"), SIZES)
def test_what_lies_above_a_row_or_in_a_free_slot_changes_nothing(plan, head_dim, dtype):
    qkv = make_qkv(head_dim, dtype)
    clean = attend(plan, qkv, make_cache(head_dim, dtype))
    assert torch.equal(attend(plan, qkv, make_cache(head_dim, dtype, outside=1e4)), clean)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("head_dim", "dtype"), SIZES)
@pytest.mark.parametrize(("slot", "own"), [(1, range(2, 3)), (5, range(4, 21))])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows_it_and_harms_no_mate(plan, head_dim, dtype, slot, own, value):
    qkv = make_qkv(head_dim, dtype)
    clean = attend(plan, qkv, make_cache(head_dim, dtype))
    cache = make_cache(head_dim, dtype)
    cache.keys[0, slot, 0, 4, 2] = value
    cache.values[0, slot, 0, 4, 2] = value
    output = attend(plan, qkv, cache)
    assert not output[own].isfinite().all(dim=-1).any()
    mates = [i for i in range(NUM_TOKENS) if i not in own]
    assert torch.equal(output[mates], clean[mates])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 7, 8, 97, 50257])
def test_the_arg_max_is_the_first_of_the_largest(dtype, vocab_size):
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(3)).to(dtype)
    first = [(row == row.max()).nonzero()[0, 0].item() for row in logits]
    assert kernels.argmax(logits).tolist() == first
    equal = torch.zeros(3, vocab_size, dtype=dtype)
    assert kernels.argmax(equal).tolist() == [0, 0, 0]
    forbidden = torch.full((2, vocab_size), float("-inf"), dtype=dtype)
    forbidden[:, -1] = -1e4
    assert kernels.argmax(forbidden).tolist() == [vocab_size - 1] * 2


@pytest.mark.parametrize("count", [0, 1, 5, 50, 256])
@pytest.mark.parametrize("vocab_size", [7, 97, 1031, 50257])
def test_the_largest_come_in_order_and_of_equal_ones_the_first(vocab_size, count):
    count = min(count, vocab_size)
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(4))
    logits[1, vocab_size // 2 :] = float("-inf")
    logits[2] = logits[2].round()  # with many equal ones
    values, ids = kernels.topk(logits, count)
    expected_values, expected_ids = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected_values[:, :count])
    if kernels._library is not None:
        assert torch.equal(ids, expected_ids[:, :count])


def test_rows_that_are_no_numbers_cost_no_more_than_their_own_result():
    logits = torch.randn(3, 1031, generator=torch.Generator().manual_seed(5))
    clean = kernels.topk(logits, 8)
    logits[1] = float("nan")
    values, ids = kernels.topk(logits, 8)
    assert torch.equal(values[[0, 2]], clean[0][[0, 2]])
    assert ids.min() >= 0
    assert ids.max() < 1031


@pytest.mark.parametrize("vocab_size", [1, 7, 97, 50257])
def test_the_logarithm_of_the_sum_of_exponentials_is_that_of_float64(vocab_size):
    logits = 4 * torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(6))
    logits[1, 1:] = float("-inf")
    logits[2] -= 1000
    logits[3] = 0
    found = kernels.logsumexp(logits)
    torch.testing.assert_close(found.double(), logits.double().logsumexp(dim=-1), rtol=2e-7, atol=2e-6)


@pytest.mark.parametrize("vocab_size", [7, 97, 50257])
def test_what_is_not_allowed_is_minus_infinity_and_all_else_is_kept(monkeypatch, vocab_size):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(5, vocab_size, generator=generator)
    is_allowed = torch.rand(5, vocab_size, generator=generator) < 0.3
    allowed = torch.from_numpy(np.packbits(is_allowed.numpy(), axis=-1, bitorder="little"))
    before = logits.clone()
    expected = logits.masked_fill(~is_allowed, float("-inf"))
    assert torch.equal(kernels.restrict(logits, allowed), expected)
    monkeypatch.setattr(kernels, "_library", None)
    assert torch.equal(kernels.restrict(logits, allowed), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(("number", "expected"), [(1e-40, "0"), (1.2e-38, str(1 << 22))])
def test_threads_that_start_later_flush_denormals_as_well(number: float, expected: str) -> None:
    """In a process of its own, since threads that there are keep their ways."""
    product = (
        "import torch; from batching.kernels import flush_denormals; torch.set_num_threads(2); flush_denormals();"
        f"print((torch.full((1 << 22,), {number}) * 1).count_nonzero().item())"
    )
    found = subprocess.run([sys.executable, "-c", product], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected
