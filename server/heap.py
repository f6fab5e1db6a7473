"""What glibc's allocator keeps of what a process has let go of. Elsewhere nothing happens.

It takes a freed block of some megabytes for a sign that more will come, and no longer gives such back: after some
uploads the server held 200 MB of nothing, and the engine 80 MB of the checkpoint that it had read.
"""

import contextlib
import ctypes

M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK = 1 << 20  # bytes


def give_back_large_blocks() -> None:
    """From now on a large block goes back to the system as soon as it is free. For who makes few of them."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def give_back_what_is_free() -> None:
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
