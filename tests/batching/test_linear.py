"""The packed linear layer: the same numbers as the plain one, in few shapes."""

import pytest
import torch
from torch.nn import functional as F

from batching.linear import PackedLinear, round_up


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
