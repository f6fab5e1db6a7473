"""The linear layers: the plain one's numbers, whichever way they are computed, and no row's from another row."""

import math

import pytest
import torch
from torch.nn import functional as F

from batching import kernels
from batching.linear import (
    ACTIVATIONS,
    KernelLinear,
    Linear,
    PackedLinear,
    PlainInt8Linear,
    halve,
    make_embedding,
    make_linear,
    quantize,
    round_up,
)

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    not kernels.can_multiply(torch.int8, CPU, 64), reason="the processor has no AVX512-BF16 and VNNI"
)
needs_halves = pytest.mark.skipif(
    not hasattr(kernels._linear, "linear_float16_to_float32"), reason="the processor has no AVX512-FP16"
)
# One panel and a piece of another (of halves less than one), less than a panel, and GPT-2 small's own widths.
SIZES = [(50, 16), (47, 64), (98, 48), (768, 3072), (2304, 768)]


def make_layer(out_features: int, in_features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias and 19 rows of x, which are two blocks of rows and a piece."""
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features) / math.sqrt(in_features)
    return weight.bfloat16(), torch.randn(out_features).bfloat16(), torch.randn(19, in_features).bfloat16()


@pytest.mark.parametrize("num_rows", [1, 2, 16, 17, 31, 33, 63, 64, 65, 129])
def test_rows_of_zeros_change_no_other_row(num_rows: int) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(num_rows, 16)
    y = PackedLinear(weight, bias, "gelu_new")(x)
    torch.testing.assert_close(y, F.gelu(F.linear(x, weight, bias), approximate="tanh"))
    assert y.is_contiguous()


def test_numbers_of_rows_are_few_and_cost_at_most_an_eighth_more() -> None:
    numbers = {num_rows: round_up(num_rows) for num_rows in range(1, 1025)}
    assert all(num_rows <= number <= num_rows * 9 / 8 for num_rows, number in numbers.items())
    assert len(set(numbers.values())) == 16 + 8 * 6
    assert {1, 8, 16, 32, 48, 64, 512} <= set(numbers.values())


@pytest.mark.parametrize("vocab_size", [47, 48, 96, 1031])
def test_an_embedding_read_from_the_heads_panels_is_the_weight_itself(vocab_size: int) -> None:
    weight, _, _ = make_layer(vocab_size, 64)
    token_ids = torch.arange(vocab_size).flip(0)
    of_bfloat16 = KernelLinear(kernels.Panels.of(weight, None), None, torch.float32)
    for head in (of_bfloat16, layer_of_halves(weight, None)):
        assert torch.equal(make_embedding(weight, head)(token_ids), weight[token_ids])


def test_an_embedding_is_kept_beside_a_head_that_has_other_numbers() -> None:
    weight, _, _ = make_layer(50, 16)
    token_ids = torch.arange(50)
    rounded, scales = quantize(weight)
    of_int8 = KernelLinear(kernels.Panels.of(rounded, None, scales), None, torch.float32)
    for head in (of_int8, make_linear(weight, None, out_dtype=torch.float32, is_int8=True), None):
        assert torch.equal(make_embedding(weight, head)(token_ids), weight)


@needs_kernels
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("size", SIZES)
def test_our_bfloat16_products_are_those_of_float32_over_the_same_numbers(size, activation):
    weight, bias, x = make_layer(*size)
    layer = KernelLinear(kernels.Panels.of(weight, bias), activation, torch.float32)
    plain = make_linear(weight.float(), bias.float(), activation)
    torch.testing.assert_close(layer(x), plain(x.float()), rtol=1e-5, atol=1e-5)
    rounded = KernelLinear(kernels.Panels.of(weight, bias), activation, torch.bfloat16)
    torch.testing.assert_close(rounded(x), layer(x).bfloat16(), rtol=0, atol=2e-2)
    assert all(torch.equal(layer(x[:count]), layer(x)[:count]) for count in range(len(x))), "no row depends on others"


@needs_kernels
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("size", SIZES)
def test_our_int8_products_are_those_of_torch_over_the_same_integers(size, activation):
    weight, bias, x = make_layer(*size)
    rounded, scales = quantize(weight)
    layer = KernelLinear(kernels.Panels.of(rounded, bias, scales), activation, torch.float32)
    plain = PlainInt8Linear(rounded, bias, scales, activation)
    torch.testing.assert_close(layer(x), plain(x.float()), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(layer(x[:count]), layer(x)[:count]) for count in range(len(x))), "no row depends on others"


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_no_row_of_the_plain_int8_products_depends_on_others_with_many_threads(activation):
    weight, bias, _ = make_layer(3072, 64)
    rounded, scales = quantize(weight)
    layer = PlainInt8Linear(rounded, bias, scales, activation)
    x = torch.randn(100, 64)
    num_threads = torch.get_num_threads()
    try:
        for torch_threads in (3, 5, 7):
            torch.set_num_threads(torch_threads)
            for count in (7, 11, 17, 23, 64, 100):
                alone = torch.cat([layer(x[row : row + 1]) for row in range(count)])
                assert torch.equal(layer(x[:count]), alone)
    finally:
        torch.set_num_threads(num_threads)


def layer_of_halves(
    weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None = None, dtype: torch.dtype = torch.float32
) -> KernelLinear:
    halves, scales = halve(weight)
    return KernelLinear(kernels.Panels.of(halves, bias, scales), activation, dtype)


def check_that_a_row_shows_it_and_harms_no_mate(layer: Linear, x: torch.Tensor, value: float) -> None:
    clean = layer(x)
    x[3, 5] = value
    found = layer(x)
    assert not found[3].isfinite().any()
    mates = [i for i in range(len(x)) if i != 3]
    assert torch.equal(found[mates], clean[mates])


def distance(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of each row from the exact one, as a share of that."""
    return (found - exact).norm(dim=1) / exact.norm(dim=1)


@needs_halves
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("size", SIZES)
def test_our_half_precision_products_are_nearer_than_bfloat16_can_tell(size, activation):
    weight, bias, x = make_layer(*size)
    exact = make_linear(weight.float(), bias.float(), activation)(x.float())
    rounding = distance(exact.bfloat16(), exact)
    for dtype, most in ((torch.float32, rounding.min()), (torch.bfloat16, 2 * rounding.max())):
        layer = layer_of_halves(weight, bias, activation, dtype)
        assert distance(layer(x).float(), exact).max() < most
        assert all(torch.equal(layer(x[:count]), layer(x)[:count]) for count in range(len(x))), "rows are independent"


@needs_halves
def test_halves_reach_as_far_as_bfloat16_does():
    """Each row of `x` and each column has numbers of its own size; in one row one number is far above the others."""
    weight, _, x = make_layer(100, 768)
    sizes = 2.0 ** torch.arange(-60, 60, 120 / 100)[:100].round()
    x = x * 2.0 ** torch.arange(-60, 60, 120 / 19)[:19].round()[:, None].bfloat16()
    x[7, 100] = x[7].abs().max() * 3e4
    found = layer_of_halves(weight * sizes[:, None].bfloat16(), None)(x) / sizes
    exact = F.linear(x.double(), weight.double())
    assert distance(found, exact).max() < distance(exact.bfloat16(), exact).min()
    # Each scale alone brings what the other has taken.
    far, near = torch.full((1, 768), 2.0**120).bfloat16(), torch.full((1, 768), 2.0**-30).bfloat16()
    assert distance(layer_of_halves(near, None)(far), F.linear(far.double(), near.double())).max() < 1e-2
    smallest, largest = torch.full((1, 768), 2.0**-100).bfloat16(), torch.full((1, 768), 2.0**125).bfloat16()
    layer = layer_of_halves(weight, None)
    for extreme in (smallest, largest):
        assert distance(layer(extreme), F.linear(extreme.double(), weight.double())).max() < 1e-2


@needs_halves
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_halves_can_be_summed(dtype):
    weight, x = torch.full((3, 64), 2040 / 2**16).bfloat16(), torch.full((2, 64), -255 / 2**9).bfloat16()
    found = layer_of_halves(weight, None, dtype=dtype)(x)
    torch.testing.assert_close(found.double(), F.linear(x.double(), weight.double()), rtol=5e-3, atol=0)


@needs_halves
def test_a_row_of_zeros_gives_the_bias_and_so_does_a_column():
    weight, bias, x = make_layer(100, 64)
    x[5], weight[7] = 0, 0
    found = layer_of_halves(weight, bias)(x)
    assert torch.equal(found[5], bias.float())
    assert torch.equal(found[:, 7], bias[7].float().expand(len(x)))


@needs_halves
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_of_halves_that_is_not_finite_shows_it_and_harms_no_mate(value):
    weight, bias, x = make_layer(100, 64)
    check_that_a_row_shows_it_and_harms_no_mate(layer_of_halves(weight, bias), x, value)


def test_halving_rounds_only_what_is_nothing_beside_its_row():
    weight, _, _ = make_layer(100, 768)
    weight *= 2.0 ** torch.arange(-50, 50)[:, None].bfloat16()
    halves, scales = halve(weight)
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    assert halves.abs().max() < 2048
    restored = halves.float() * scales[:, None]
    is_rounded = restored != weight
    assert weight.float().abs()[is_rounded].le((largest * 2.0**-28).expand_as(weight)[is_rounded]).all()
    assert ((restored - weight.float()).abs() <= largest * 2.0**-35).all()
    zeros, one = halve(torch.zeros(1, 16).bfloat16())
    assert torch.equal(zeros * one, torch.zeros(1, 16))


def int8_layers() -> list[object]:
    return [
        pytest.param(torch.bfloat16, marks=needs_kernels, id="ours"),
        pytest.param(torch.float32, id="torch's"),
    ]


@pytest.mark.parametrize("dtype", int8_layers())
def test_int8_is_near_what_it_rounds(dtype):
    weight, bias, x = make_layer(768, 3072)
    exact = F.linear(x.float(), weight.float(), bias.float())
    found = make_linear(weight.to(dtype), bias.to(dtype), is_int8=True, out_dtype=torch.float32)(x.to(dtype))
    assert (found - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("dtype", int8_layers())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_int8_row_that_is_not_finite_shows_it_and_harms_no_mate(value, dtype):
    weight, bias, x = (tensor.to(dtype) for tensor in make_layer(100, 64))
    check_that_a_row_shows_it_and_harms_no_mate(make_linear(weight, bias, is_int8=True), x, value)


def test_an_int8_row_of_zeros_is_the_bias():
    weight, bias, _ = make_layer(100, 64)
    layer = make_linear(weight.float(), bias.float(), is_int8=True)
    torch.testing.assert_close(layer(torch.zeros(2, 64)), bias.float().expand(2, -1))
