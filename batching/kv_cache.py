"""The slots: each one row's place in two preallocated tensors, keys and values, for every layer.

Knows slots and positions. Knows nothing of tasks, tokens or who owns a slot.
"""

import heapq
import mmap
import os
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from prefix_store.prefix import BackboneShape

MAX_DEFAULT_NUM_SLOTS = 64
CGROUP = Path("/sys/fs/cgroup")


def choose_num_slots(
    wanted: int | None,
    shape: BackboneShape,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    has_spare_slot: bool = False,
) -> int:
    """`wanted`, or as many as fit in half of the free memory, at most 64. Raises `MemoryError` if they cannot fit, the
    spare one included."""
    num_bytes_per_slot = 2 * shape.n_layer * max_model_len * shape.n_embd * dtype.itemsize
    num_free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_bytes()
    if wanted is None:
        wanted = max(1, min(MAX_DEFAULT_NUM_SLOTS, num_free_bytes // 2 // num_bytes_per_slot))
    num_bytes = (wanted + has_spare_slot) * num_bytes_per_slot
    if num_bytes > num_free_bytes:
        raise MemoryError(
            f"{wanted} slots of {max_model_len} tokens need {num_bytes / 2**20:,.0f} MiB; "
            f"{num_free_bytes / 2**20:,.0f} are free. Lower --max-num-seqs or --max-model-len"
        )
    return int(wanted)


def _free_host_bytes() -> int:
    """What this process may still take: the host's available memory, or less in a container with a limit (cgroup 2)."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # no Linux: all of the memory is the best guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(sizes["MemAvailable"].split()[0]) * 1024
    limit = CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        used = int((CGROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files, a model's say, are given up when memory is asked for.
        used -= int(kinds.get("inactive_file", 0))
        available = min(available, int(most) - used)
    return available


class KVCache:
    """`keys` and `values`, each `[n_layer, num_slots, n_head, max_model_len, head_dim]`.

    The lowest free slot is taken first, so that live rows lie side by side and attention can read them as one view.
    A spare slot, if there is to be one, lies behind the others: nobody takes or reads it, and anything may be written
    there.
    """

    def __init__(
        self,
        shape: BackboneShape,
        num_slots: int,
        max_model_len: int,
        dtype: torch.dtype,
        device: torch.device,
        has_spare_slot: bool = False,
    ) -> None:
        size = (shape.n_layer, num_slots + has_spare_slot, shape.n_head, max_model_len, shape.head_dim)
        self.keys, self.values = _zeros(size, dtype, device), _zeros(size, dtype, device)
        self.num_slots = num_slots
        self.max_model_len = max_model_len
        self.spare_slot = num_slots if has_spare_slot else None
        self._free = list(range(num_slots))  # a heap

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        assert 0 <= slot < self.num_slots, slot
        assert slot not in self._free, f"slot {slot} was given back twice"
        heapq.heappush(self._free, slot)

    def clear(self, slot: int, num_tokens: int | None = None) -> None:
        """Zero a slot that may hold non-finite numbers, or its first `num_tokens` entries."""
        self.keys[:, slot, :, :num_tokens] = 0
        self.values[:, slot, :, :num_tokens] = 0

    def write_prefix(self, slot: int, past_key_values: Tensor) -> None:
        """Put `[n_layer, 2, T, n_head, head_dim]` at the slot's first T positions."""
        num_virtual_tokens = past_key_values.shape[2]
        if self.keys.is_cuda:  # as it is, from pinned memory: nobody waits, and the device casts and transposes
            past_key_values = past_key_values.pin_memory().to(self.keys.device, non_blocking=True)
        keys, values = past_key_values.transpose(2, 3).unbind(1)  # [L, H, T, D] each
        self.keys[:, slot, :, :num_virtual_tokens] = keys
        self.values[:, slot, :, :num_virtual_tokens] = values

    def read(self, slot: int, num_tokens: int) -> Tensor:
        """The slot's first `num_tokens` entries as `[n_layer, 2, num_tokens, n_head, head_dim]` on the CPU."""
        entries = torch.stack((self.keys[:, slot, :, :num_tokens], self.values[:, slot, :, :num_tokens]), dim=1)
        return entries.transpose(2, 3).contiguous().cpu()

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Let the first `num_tokens` entries of slot `target` be those of `source`."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :num_tokens] = cache[:, source, :, :num_tokens]


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not empty: a masked 0 * NaN is NaN. On Linux in large pages, where the system grants them: a step reads a
    few kilobytes each from thousands of places, and of small pages the processor has to look most of them up.
    """
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = prod(size) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:  # a limit of the process's own
        raise MemoryError(
            f"no {num_bytes / 2**20:,.0f} MiB for half of the slots: {error.strerror}. Lower --max-num-seqs or "
            "--max-model-len"
        ) from error
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(size).zero_()  # so that all of it is there from the start
