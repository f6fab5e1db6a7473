"""The loops of `kernels.cpp` and `linear.cpp`, as functions of tensors.

They were compiled when the package was built, if there was a compiler, for some kinds of x86 processor. Whoever calls
asks `can_attend` or `can_multiply` first, and has another way; `argmax` has its own. Knows nothing of GPT-2.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

FLOATS = (torch.float32, torch.bfloat16)
HEAD_DIMS = (8, 16, 32, 64, 128)
PANEL_WIDTH = 48  # columns that linear.cpp computes together
LANES = 16
WORD_BYTES = 4

# R rows of the step, N their new tokens, H heads, D head_dim, M rows of x or of logits, V vocab_size


def _load(name: str) -> ctypes.CDLL | None:
    """torch comes first, so that its OpenMP is the one that the library finds: two would fight for the cores."""
    path = Path(__file__).with_name(name)
    return ctypes.CDLL(str(path)) if path.exists() else None


_CAN = torch.cpu.get_capabilities()
_library = _load(f"kernels-{torch.backends.cpu.get_cpu_capability().lower()}.so")  # of AVX2, AVX512 or none
HAS_KERNELS = _library is not None
_linear = _load("linear-avx512.so") if _CAN.get("avx512_bf16") and _CAN.get("avx512_vnni") else None
_is_intel = None if _linear is None else ctypes.c_bool.in_dll(_linear, "is_intel")


def flush_denormals() -> None:
    """Let this thread, and those that it starts from now on, take numbers below 1.2e-38 for zero.

    Many processors take a hundred times as long over them, and anyone may upload a prefix that is full of them: its
    rows would hold up their mates.
    """
    torch.set_flush_denormal(True)


def can_attend(keys: Tensor) -> bool:
    """Whether `attend` has code for a cache like this one `[…, D]`."""
    is_known = keys.device.type == "cpu" and keys.dtype in FLOATS and keys.shape[-1] in HEAD_DIMS
    return _library is not None and is_known


def attend(qkv: Tensor, keys: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Write the new keys and values into their slots, then attend: each row to its own length, in float32.

    `qkv` `[N, 3, H, D]`; `keys`, `values` `[num_slots, H, max_model_len, D]`; `rows` `[R, 4]` int64: a row's first
    token of the N, its slot, that token's position in it, how many new tokens it has. Returns `[N, H * D]`.
    """
    assert _library is not None
    N, _, H, D = qkv.shape
    output = qkv.new_empty(N, H * D)
    sizes = (len(rows), H, keys.shape[2], D)
    _call(_library, f"attend_{_name_of(qkv)}", (qkv.contiguous(), keys, values, rows, output), sizes)
    return output


def argmax(logits: Tensor) -> Tensor:
    """`[M, V]` -> `[M]` int64, the first of equal ones. torch's own takes five times as long on CPUs, or more."""
    if _library is None or logits.device.type != "cpu" or logits.dtype not in FLOATS or not logits.is_contiguous():
        return logits.argmax(dim=-1)
    indices = torch.empty(len(logits), dtype=torch.int64)
    _call(_library, f"argmax_{_name_of(logits)}", (logits, indices), tuple(logits.shape))
    return indices


def restrict(logits: Tensor, allowed: Tensor) -> Tensor:
    """A copy of `[M, V]` with -inf where a row's bit of `allowed` `[M, ceil(V / 8)]` uint8 is not set, the lowest of a
    byte first."""
    if _library is None or logits.device.type != "cpu" or logits.dtype != torch.float32:
        bits = allowed[..., None] >> torch.arange(8, dtype=torch.uint8, device=logits.device) & 1  # [M, V / 8, 8]
        return logits.masked_fill(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))
    kept = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _call(_library, "restrict_float32", (logits.contiguous(), allowed, kept), tuple(logits.shape))
    return kept


def topk(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of finite `[M, V]` or of -inf, the largest first: values and int64 ids, both
    `[M, count]`. On CPUs the first of equal ones come first. torch's own takes three times as long there.
    """
    if _library is None or logits.device.type != "cpu" or logits.dtype != torch.float32:
        values, ids = logits.topk(count, dim=-1)
        return values, ids
    values, ids = logits.new_empty(len(logits), count), torch.empty(len(logits), count, dtype=torch.int64)
    _call(_library, "topk_float32", (logits.contiguous(), values, ids), (*logits.shape, count))
    return values, ids


def logsumexp(logits: Tensor) -> Tensor:
    """`[M, V]` -> `[M]`; rows hold a finite number. torch's own takes twice as long on CPUs."""
    if _library is None or logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.logsumexp(dim=-1)
    result = logits.new_empty(len(logits))
    _call(_library, "logsumexp_float32", (logits.contiguous(), result), tuple(logits.shape))
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """A linear layer's numbers in the order in which `linear` reads them; bfloat16 weights have no scales."""

    weight: Tensor  # [panels, words of a row, PANEL_WIDTH, numbers of a word], bfloat16 or int8
    bias: Tensor  # [panels * PANEL_WIDTH] float32
    scales: Tensor | None  # [panels * PANEL_WIDTH] float32, what one step of each column's int8 is
    totals: Tensor | None  # [panels * PANEL_WIDTH] int32, the sum of each column's int8
    out_features: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> "Panels":
        """`weight` `[out_features, in_features]`; `scales` `[out_features]` if it is int8."""
        out_features, in_features = weight.shape
        num_missing = -out_features % PANEL_WIDTH
        word = WORD_BYTES // weight.element_size()
        padded = F.pad(weight, (0, 0, 0, num_missing)).view(-1, PANEL_WIDTH, in_features // word, word)
        if bias is None:
            bias = weight.new_zeros(out_features)
        return cls(
            weight=padded.transpose(1, 2).contiguous(),
            bias=F.pad(bias.float(), (0, num_missing)),
            scales=None if scales is None else F.pad(scales.float(), (0, num_missing)),
            totals=None if scales is None else F.pad(weight.sum(dim=1, dtype=torch.int32), (0, num_missing)),
            out_features=out_features,
        )

    def columns(self, numbers: Tensor) -> Tensor:
        """`[N]` numbers of columns -> `[N, in_features]`, their weights as they were before they were laid in order."""
        words = self.weight.view(torch.int32)[..., 0]  # [panels, words of a row, PANEL_WIDTH]
        return words[numbers // PANEL_WIDTH, :, numbers % PANEL_WIDTH].view(self.weight.dtype)


def can_multiply(dtype: torch.dtype, device: torch.device, in_features: int) -> bool:
    """Whether `linear` has code for bfloat16 `x` and weights of this type (bfloat16 or int8) on this device.

    Processors with AMX have a faster way for bfloat16, which oneDNN takes.
    """
    is_known = dtype == torch.int8 or (dtype == torch.bfloat16 and not _CAN.get("amx_bf16"))
    return _linear is not None and is_known and device.type == "cpu" and in_features % LANES == 0


def linear(x: Tensor, panels: Panels, has_gelu: bool, out_dtype: torch.dtype) -> Tensor:
    """`x` `[M, in_features]` bfloat16 -> `[M, out_features]` in bfloat16 or float32; GPT-2's GELU (tanh) if asked.

    With int8 weights each row of `x` is rounded to int8 with a scale of its own; sums are exact. Either way a row's
    result has the same bits whatever the other rows are.
    """
    assert _linear is not None
    assert _is_intel is not None
    M, in_features = x.shape
    y = x.new_empty(M, panels.out_features, dtype=out_dtype)
    scratch = None  # torch's, which raises where there is no memory
    if panels.scales is not None:
        scratch = x.new_empty(M * (in_features + 4), dtype=torch.uint8)
    elif _is_intel.value:
        scratch = x.new_empty(M * in_features, dtype=torch.float32)
    name = f"linear_{_name_of(panels.weight)}_to_{_name_of(y)}"
    tensors = (x.contiguous(), panels.weight, panels.bias, panels.scales, panels.totals, y, scratch)
    _call(_linear, name, tensors, (M, in_features, panels.out_features, has_gelu))
    return y


def _name_of(tensor: Tensor) -> str:
    """Its type's, as the compiled functions' names have it."""
    return str(tensor.dtype).removeprefix("torch.")


def _call(library: ctypes.CDLL, name: str, tensors: tuple[Tensor | None, ...], sizes: tuple[int, ...]) -> None:
    pointers = [None if tensor is None else ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    getattr(library, name)(*pointers, *[ctypes.c_int64(size) for size in sizes])
