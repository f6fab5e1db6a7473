"""A frozen linear layer, `act(x @ W.T + b)`, in the fastest form that the device has.

On CPUs the weight is packed once: for our own loops where they are the faster ones, else for oneDNN. Plain
`F.linear` in bfloat16 is up to three times as slow as the same product over packed weights, and in float32 as well.
Knows nothing of GPT-2.
"""

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from batching import kernels
from batching.kernels import Panels

# The name in a GPT-2 config -> (oneDNN's activation, its algorithm).
ACTIVATIONS = {
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
}

BLOCK_ROWS = 32
LARGEST_INT8 = 127
# linear.cpp brings `x` below 1. Weights below 2^11 then keep a sum of 32 products among the halves, of which 65,504 is
# the largest: the largest bfloat16 are 255/256 and 2040, whose products come to 65,280 as they are rounded on the way.
HALF_BITS = 11
LEAST_EXPONENT = -100  # a row that is smaller still is not brought up further


class Linear(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """`[N, in_features]` -> `[N, out_features]`."""


class Embedding(Protocol):
    def __call__(self, token_ids: Tensor, /) -> Tensor:
        """`[N]` -> `[N, features]`."""


class KernelLinear:
    """Weights in bfloat16, float16 or int8 for our own loops, which fuse GPT-2's GELU. `x` is bfloat16."""

    def __init__(self, panels: Panels, activation: str | None, out_dtype: torch.dtype) -> None:
        self._panels = panels
        self._has_gelu = activation is not None and ACTIVATIONS[activation] == ("gelu", "tanh")
        self._activation = None if self._has_gelu else activation
        self._out_dtype = out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        return activate(kernels.linear(x, self._panels, self._has_gelu, self._out_dtype), self._activation)

    @property
    def is_exact(self) -> bool:
        """Whether its weights are as they were given; of float16 see `halve`."""
        return self._panels.weight.dtype != torch.int8

    def weights_of(self, outputs: Tensor) -> Tensor:
        """`[N]` numbers of outputs -> `[N, in_features]`."""
        return self._panels.columns(outputs)


class PackedLinear:
    """Weights in oneDNN's blocked layout, with the activation fused.

    oneDNN compiles code for every number of rows that it meets, which takes milliseconds, and keeps it, half a megabyte
    each: with prompts of all lengths a server would grow by hundreds. So rows of zeros make the numbers few.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._row = weight.new_zeros(1, weight.shape[1])
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

    def warm_up(self, max_num_rows: int) -> None:
        """Have the code for all numbers of rows up to it; layers of the same shape share it."""
        for num_rows in sorted({round_up(num_rows) for num_rows in range(1, max_num_rows + 1)}):
            self(self._row.repeat(num_rows, 1))


class PlainLinear:
    """For devices and dtypes without packing."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        self._weight = weight.contiguous()
        self._bias = bias
        self._activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        return activate(F.linear(x, self._weight, self._bias), self._activation)


class PlainInt8Linear:
    """What `KernelLinear` computes with int8 weights, in torch's operations: slowly, on any CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor, activation: str | None) -> None:
        self._weight = weight.t().contiguous()  # [in_features, out_features]
        self._bias = bias
        self._scales = scales
        self._activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        rounded, row_scales = quantize(x)
        y = torch._int_mm(rounded, self._weight) * (row_scales[:, None] * self._scales)  # float32
        y = y if self._bias is None else y + self._bias.float()
        return activate(y, self._activation).to(x.dtype)


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


def make_linear(
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    is_int8: bool = False,
    is_deterministic: bool = False,
) -> Linear:
    """`weight` `[out_features, in_features]`; `activation` is a GPT-2 config's name for one, or None.

    `out_dtype`: float32 gives a product's sums without rounding them to the weights' type where the device can, which
    only our own loops do.
    `is_int8`: weights are rounded to int8, one scale for each output; so is `x`, one scale for each row.
    `is_deterministic`: a row's result has the same bits whatever the other rows are.
    """
    out_dtype = out_dtype or weight.dtype
    has_kernel = weight.dtype == torch.bfloat16 and kernels.can_multiply(
        torch.int8 if is_int8 else weight.dtype, weight.device, weight.shape[1]
    )
    if is_int8:
        rounded, scales = quantize(weight)
        if has_kernel:
            return KernelLinear(Panels.of(rounded, bias, scales), activation, out_dtype)
        return PlainInt8Linear(rounded, bias, scales, activation)
    if has_kernel and kernels.IS_HALF_FASTER:
        halves, scales = halve(weight)
        return KernelLinear(Panels.of(halves, bias, scales), activation, out_dtype)
    if has_kernel:
        return KernelLinear(Panels.of(weight, bias), activation, out_dtype)
    is_packable = weight.device.type == "cpu" and torch._C._has_mkldnn and _can_pack(weight.dtype)
    linear: Linear = PackedLinear(weight, bias, activation) if is_packable else PlainLinear(weight, bias, activation)
    return BlockedLinear(linear) if is_deterministic else linear


def make_embedding(weight: Tensor, head: Linear | None) -> Embedding:
    """`weight` `[V, features]`; `head` is the layer of the same weights, where they are the same: read there, if it has
    them as they are, they need not be kept twice."""
    if isinstance(head, KernelLinear) and head.is_exact:
        return head.weights_of
    return partial(F.embedding, weight=weight)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of `[N, K]` to int8 symmetrically: `[N, K]` int8 and `[N]` float32, what one step is.

    A row that is not finite has a scale that is not.
    """
    x = x.float()
    scales = x.abs().amax(dim=1) / LARGEST_INT8
    return (x * torch.where(scales > 0, 1 / scales, 0.0)[:, None]).round().nan_to_num().to(torch.int8), scales


def halve(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, K]` bfloat16 as `[N, K]` float16 below 2^11 and `[N]` float32, powers of two, what 1 is in each row.

    Nothing is rounded but numbers under 2^-28 of their row's largest, to multiples of 2^-36 of it.
    """
    exponents = weight.float().abs().amax(dim=1).frexp().exponent.clamp(min=LEAST_EXPONENT) - HALF_BITS
    return torch.ldexp(weight.float(), -exponents[:, None]).half(), torch.ldexp(torch.ones(len(weight)), exponents)


def activate(y: Tensor, activation: str | None) -> Tensor:
    name, algorithm = ACTIVATIONS[activation] if activation else ("none", "")
    if algorithm == "tanh" and y.device.type == "cpu":
        return _gelu_tanh(y)
    if name == "gelu":
        return F.gelu(y, approximate=algorithm)
    return F.relu(y) if name == "relu" else y


def _gelu_tanh(y: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks and Gimpel 2016, section 2). On CPUs torch's own computes the last elements of each
    thread's part in another way than the others, so that a row's bits depend on how many rows there are; its tanh does
    not."""
    wide = y.float()
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (0.5 * wide * (1 + torch.tanh(inner))).to(y.dtype)


def round_up(num_rows: int) -> int:
    """The next of eight numbers between powers of two, so at most an eighth more; up to 16 every number is one."""
    granule: int = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // granule) * granule


def _can_pack(dtype: torch.dtype) -> bool:
    """bfloat16 needs AVX-512 or its like: elsewhere oneDNN refuses to pack it."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
