"""The loops of `kernels.cpp`, as functions of tensors.

They were compiled when the package was built, if there was a compiler, for two kinds of x86 processor. Whoever calls
asks `can_attend` first, and has another way; `argmax` has its own. Knows nothing of rows, plans or GPT-2.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

# torch's name for what the processor can -> the compiler's; see hatch_build.py.
ARCHITECTURES = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
HEAD_DIMS = (8, 16, 32, 64, 128)

# R rows of the step, N their new tokens, H heads, D head_dim, M rows of logits, V vocab_size


def _load() -> ctypes.CDLL | None:
    """torch comes first, so that its OpenMP is the one that the library finds: two would fight for the cores."""
    architecture = ARCHITECTURES.get(torch.backends.cpu.get_cpu_capability())
    path = Path(__file__).with_name(f"kernels-{architecture}.so")
    return ctypes.CDLL(str(path)) if path.exists() else None


_library = _load()


def can_attend(keys: Tensor) -> bool:
    """Whether `attend` has code for a cache like this one `[…, D]`."""
    is_known = keys.device.type == "cpu" and keys.dtype in DTYPES and keys.shape[-1] in HEAD_DIMS
    return _library is not None and is_known


def attend(qkv: Tensor, keys: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Write the new keys and values into their slots, then attend: each row to its own length, in float32.

    `qkv` `[N, 3, H, D]`; `keys`, `values` `[num_slots, H, max_model_len, D]`; `rows` `[R, 4]` int64: a row's first
    token of the N, its slot, that token's position in it, how many new tokens it has. Returns `[N, H * D]`.
    """
    N, _, H, D = qkv.shape
    output = qkv.new_empty(N, H * D)
    sizes = (len(rows), H, keys.shape[2], D)
    _call("attend", qkv.dtype, (qkv.contiguous(), keys, values, rows, output), sizes)
    return output


def argmax(logits: Tensor) -> Tensor:
    """`[M, V]` -> `[M]` int64, the first of equal ones. torch's own takes eight times as long on CPUs."""
    if _library is None or logits.device.type != "cpu" or logits.dtype not in DTYPES or not logits.is_contiguous():
        return logits.argmax(dim=-1)
    indices = torch.empty(len(logits), dtype=torch.int64)
    _call("argmax", logits.dtype, (logits, indices), tuple(logits.shape))
    return indices


def _call(name: str, dtype: torch.dtype, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    assert all(tensor.is_contiguous() for tensor in tensors)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    getattr(_library, f"{name}_{DTYPES[dtype]}")(*pointers, *[ctypes.c_int64(size) for size in sizes])
