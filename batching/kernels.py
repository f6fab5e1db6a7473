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
LANES = 16
# Of each type of weights, as linear.cpp has it: columns of a panel, numbers of a word, bytes that one of `x` becomes.
LAYOUTS = {torch.bfloat16: (48, 2, 0), torch.int8: (48, 4, 1), torch.float16: (96, 1, 4)}

# R rows of the step, N their new tokens, H heads, D head_dim, M rows of x or of logits, V vocab_size


def _load(name: str) -> ctypes.CDLL | None:
    """torch comes first, so that its OpenMP is the one that the library finds: two would fight for the cores."""
    path = Path(__file__).with_name(name)
    return ctypes.CDLL(str(path)) if path.exists() else None


_CAN = torch.cpu.get_capabilities()
_library = _load(f"kernels-{torch.backends.cpu.get_cpu_capability().lower()}.so")  # of AVX2, AVX512 or none
HAS_KERNELS = _library is not None
_with_half = _load("linear-avx512fp16.so") if _CAN.get("avx512_fp16") else None
_linear = (_with_half or _load("linear-avx512.so")) if _CAN.get("avx512_bf16") and _CAN.get("avx512_vnni") else None
IS_HALF_FASTER = _with_half is not None and ctypes.c_bool.in_dll(_with_half, "is_intel").value  # than bfloat16


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
    """A linear layer's numbers in the order in which `linear` reads them; `LAYOUTS` has the widths and words."""

    weight: Tensor  # [panels, words of a row, columns of a panel, numbers of a word], bfloat16, int8 or float16
    bias: Tensor  # [columns] float32, as the others filled up to whole panels
    scales: Tensor | None  # [columns] float32, what 1 is in each column's int8 or float16
    totals: Tensor | None  # [columns] int32, the sum of each column's int8
    out_features: int

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> "Panels":
        """`weight` `[out_features, in_features]`; `scales` `[out_features]` unless it is bfloat16."""
        out_features, in_features = weight.shape
        width, word, _ = LAYOUTS[weight.dtype]
        num_missing = -out_features % width
        padded = F.pad(weight, (0, 0, 0, num_missing)).view(-1, width, in_features // word, word)
        if bias is None:
            bias = weight.new_zeros(out_features)
        totals = weight.sum(dim=1, dtype=torch.int32) if weight.dtype == torch.int8 else None
        return cls(
            weight=padded.transpose(1, 2).contiguous(),
            bias=F.pad(bias.float(), (0, num_missing)),
            scales=None if scales is None else F.pad(scales.float(), (0, num_missing)),
            totals=None if totals is None else F.pad(totals, (0, num_missing)),
            out_features=out_features,
        )

    def columns(self, numbers: Tensor) -> Tensor:
        """`[N]` numbers of columns -> `[N, in_features]`, their weights in bfloat16."""
        width = self.weight.shape[2]
        weights = self.weight[numbers // width, :, numbers % width].flatten(1)
        return weights if self.scales is None else (weights * self.scales[numbers, None]).bfloat16()


def can_multiply(dtype: torch.dtype, device: torch.device, in_features: int) -> bool:
    """Whether `linear` has code for bfloat16 `x` and weights of this type (bfloat16 or int8) on this device.

    Processors with AMX have a faster way for bfloat16, which oneDNN takes.
    """
    is_known = dtype == torch.int8 or (dtype == torch.bfloat16 and not _CAN.get("amx_bf16"))
    return _linear is not None and is_known and device.type == "cpu" and in_features % LANES == 0


def linear(x: Tensor, panels: Panels, has_gelu: bool, out_dtype: torch.dtype) -> Tensor:
    """`x` `[M, in_features]` bfloat16 -> `[M, out_features]` in bfloat16 or float32; GPT-2's GELU (tanh) if asked.

    With int8 weights each row of `x` is rounded to int8 with a scale of its own; sums are exact. With float16 weights
    each row of `x` is brought below 1 by a power of two, and 32 products at a time, or 16 for a result in float32, are
    summed in float16, these sums in float32. In any case a row's result has the same bits whatever the other rows are.
    """
    assert _linear is not None
    M, in_features = x.shape
    _, _, num_bytes = LAYOUTS[panels.weight.dtype]
    y = x.new_empty(M, panels.out_features, dtype=out_dtype)
    scratch = x.new_empty(M * (4 + in_features * num_bytes), dtype=torch.uint8)  # torch's, which raises where none is
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
