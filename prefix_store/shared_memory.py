"""Memory that several processes have in common: what one has put there, another sees where it is told to look.

A server and its engine both hold the prefixes that are in use: here they are once for both, and none goes over in
bytes. Knows tensors and places. Knows nothing of what they mean.
"""

import mmap
import os
from dataclasses import dataclass
from math import prod
from threading import Lock
from weakref import finalize

import torch
from torch import Tensor


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
        return _tensor(self, self.mapped())

    def mapped(self) -> mmap.mmap:
        return mmap.mmap(self.descriptor, self.nbytes, offset=self.offset)


class SharedMemory:
    """Thread-safe. A tensor's bytes are given back to the system when whoever put it here has let go of it.

    A place is never used again, so somebody who still looks there sees zeros, and nobody else's numbers. The file is in
    no directory and takes the memory of what is in it, however far apart that is.
    """

    def __init__(self) -> None:
        """Raises `OSError`, or `AttributeError` where the system is not Linux."""
        self._descriptor = os.memfd_create("polyprefix")
        finalize(self, os.close, self._descriptor)  # every tensor's own finalizer holds this object until then
        self._lock = Lock()
        self._end = 0

    def fileno(self) -> int:
        return self._descriptor

    def put(self, tensor: Tensor) -> tuple[Tensor, Place]:
        """The same numbers, here. Raises `OSError` where there may be no more mappings."""
        place = self._new_place(tensor)
        mapped = place.mapped()
        finalize(mapped, self._give_back, place).atexit = False
        shared = _tensor(place, mapped)
        shared.copy_(tensor)
        return shared, place

    def _new_place(self, tensor: Tensor) -> Place:
        with self._lock:
            place = Place(self._descriptor, self._end, tensor.dtype, tuple(tensor.shape))
            pages = -(-place.nbytes // mmap.ALLOCATIONGRANULARITY)
            self._end += pages * mmap.ALLOCATIONGRANULARITY
            os.ftruncate(self._descriptor, self._end)
        return place

    def _give_back(self, place: Place) -> None:
        with place.mapped() as mapped:
            mapped.madvise(mmap.MADV_REMOVE)


def _tensor(place: Place, mapped: mmap.mmap) -> Tensor:
    return torch.frombuffer(mapped, dtype=place.dtype).view(place.shape)
