"""Memory that several processes have in common: what one has put there, another sees where it is told to look.

A server and its engine both hold the prefixes that are in use: here they are once for both, and none goes over in
bytes. Knows tensors and places. Knows nothing of what they mean.
"""

import ctypes
import mmap
import os
from dataclasses import dataclass
from math import prod
from threading import Lock
from weakref import finalize

import torch
from torch import Tensor

# Python's own mmap keeps a descriptor for each mapping, of which a process has 1,024 where nothing is said.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is, in every process that was started with the descriptor."""

    descriptor: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def tensor(self) -> Tensor:
        """The tensor itself, not a copy: mapped for as long as it lives. Raises `OSError`."""
        return self._tensor(gives_back=False)

    def owned_tensor(self) -> Tensor:
        """The same, whose end gives the memory back to the system. Raises `OSError`."""
        return self._tensor(gives_back=True)

    def _tensor(self, gives_back: bool) -> Tensor:
        access = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, self.nbytes, access, mmap.MAP_SHARED, self.descriptor, self.offset)
        if address == _MAP_FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        mapped = (ctypes.c_char * self.nbytes).from_address(address)
        finalize(mapped, _unmap, address, self.nbytes, gives_back).atexit = False
        return torch.frombuffer(mapped, dtype=self.dtype).view(self.shape)  # it, and each view of it, holds `mapped`


class SharedMemory:
    """Thread-safe. A tensor's bytes are given back to the system when whoever put it here has let go of it.

    A place is never used again, so somebody who still looks there sees zeros, and nobody else's numbers. The file is in
    no directory and takes the memory of what is in it, however far apart that is.
    """

    def __init__(self) -> None:
        """Raises `OSError`, or `AttributeError` where the system is not Linux."""
        self._descriptor = os.memfd_create("polyprefix")
        finalize(self, os.close, self._descriptor)  # what is mapped stays so
        self._lock = Lock()
        self._end = 0

    def fileno(self) -> int:
        return self._descriptor

    def put(self, tensor: Tensor) -> tuple[Tensor, Place]:
        """The same numbers, here. Raises `OSError` where there may be no more mappings."""
        place = self._new_place(tensor)
        shared = place.owned_tensor()
        shared.copy_(tensor)
        return shared, place

    def _new_place(self, tensor: Tensor) -> Place:
        with self._lock:
            place = Place(self._descriptor, self._end, tensor.dtype, tuple(tensor.shape))
            pages = -(-place.nbytes // mmap.ALLOCATIONGRANULARITY)
            self._end += pages * mmap.ALLOCATIONGRANULARITY
            os.ftruncate(self._descriptor, self._end)
        return place


def _unmap(address: int, num_bytes: int, gives_back: bool) -> None:
    if gives_back:
        _libc.madvise(address, num_bytes, mmap.MADV_REMOVE)
    _libc.munmap(address, num_bytes)
