"""A frozen linear layer, `act(x @ W.T + b)`, in the fastest form that the device has.

On CPUs the weight is packed once for oneDNN: plain `F.linear` in bfloat16 is up to twice as slow as the same product
over packed weights, and in float32 three times. Knows nothing of GPT-2.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# The name in a GPT-2 config -> (oneDNN's activation, its algorithm).
ACTIVATIONS = {
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
}


BLOCK_ROWS = 32


class Linear(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """`[N, in_features]` -> `[N, out_features]`."""


class PackedLinear:
    """Weights in oneDNN's blocked layout, with the activation fused.

    oneDNN compiles code for every number of rows that it meets, which takes milliseconds, and keeps it, half a megabyte
    each: with prompts of all lengths a server would grow by hundreds. So rows of zeros make the numbers few.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        self._activation, self._algorithm = ACTIVATIONS[activation] if activation else ("none", "")

    def __call__(self, x: Tensor) -> Tensor:
        N = len(x)
        if num_missing := round_up(N) - N:
            x = F.pad(x, (0, 0, 0, num_missing))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, self._activation, [], self._algorithm
        )
        return y[:N]


class PlainLinear:
    """For devices and dtypes without packing."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        self._weight = weight.contiguous()
        self._bias = bias
        self._activation, self._algorithm = ACTIVATIONS[activation] if activation else ("none", "")

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        if self._activation == "gelu":
            return F.gelu(y, approximate=self._algorithm)
        return F.relu(y) if self._activation == "relu" else y


class BlockedLinear:
    """Another layer, by blocks of exactly `BLOCK_ROWS` rows; zeros fill up the last one.

    A product's shape decides which code computes it, and so in which order it adds. With one shape for all, a row's
    result has the same bits whatever its neighbours are, and however many.
    """

    def __init__(self, linear: Linear) -> None:
        self._linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        num_missing = -len(x) % BLOCK_ROWS
        blocks = torch.split(F.pad(x, (0, 0, 0, num_missing)), BLOCK_ROWS)
        return torch.cat([self._linear(block) for block in blocks])[: len(x)]


def round_up(num_rows: int) -> int:
    """The next of eight numbers between powers of two, so at most an eighth more; up to 16 every number is one."""
    granule: int = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // granule) * granule


def make_linear(
    weight: Tensor, bias: Tensor | None, activation: str | None = None, is_deterministic: bool = False
) -> Linear:
    """`weight` `[out_features, in_features]`; `activation` is a GPT-2 config's name for one, or None.

    `is_deterministic`: a row's result has the same bits whatever the other rows are.
    """
    is_packable = weight.device.type == "cpu" and torch._C._has_mkldnn and _can_pack(weight.dtype)
    linear: Linear = PackedLinear(weight, bias, activation) if is_packable else PlainLinear(weight, bias, activation)
    return BlockedLinear(linear) if is_deterministic else linear


def _can_pack(dtype: torch.dtype) -> bool:
    """bfloat16 needs AVX-512 or its like: elsewhere oneDNN refuses to pack it."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
