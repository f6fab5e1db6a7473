"""A prefix in shared memory: once for all who look at it, and gone when its owner has let go of it."""

import mmap
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefix_store.prefix import Prefix
from prefix_store.shared_memory import SharedMemory
from prefix_store.store import PrefixStore
from tests.prefix_store.support import BACKBONE, keys_and_values, publish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has memory without a name, others do not")

READER = """
import pickle, sys
prefix = pickle.load(sys.stdin.buffer)
print(prefix.past_key_values.sum().item(), prefix.revision, prefix.past_key_values.dtype)
prefix.past_key_values.zero_()
"""


def bytes_of(memory: SharedMemory) -> int:
    """What it takes of the system's."""
    return os.fstat(memory.fileno()).st_blocks * 512


def prefix_of(number: float, num_virtual_tokens: int = 3, dtype: torch.dtype = torch.float32) -> Prefix:
    return Prefix(torch.full((2, 2, num_virtual_tokens, 2, 8), number, dtype=dtype), revision="r", kind="prefix")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_looks_at_the_same_bytes(dtype: torch.dtype) -> None:
    memory = SharedMemory()
    prefix_of(5.0).shared(memory)
    shared = prefix_of(1.0, dtype=dtype).shared(memory)
    pickled = pickle.dumps(shared)
    assert len(pickled) < 500
    read = subprocess.run(
        [sys.executable, "-c", READER], input=pickled, capture_output=True, check=True, pass_fds=[memory.fileno()]
    )
    assert read.stdout.decode().split() == ["192.0", "r", str(dtype)]
    assert not shared.past_key_values.any()  # it wrote where we look


def test_what_nobody_holds_is_given_back_and_its_place_is_not_used_again() -> None:
    memory = SharedMemory()
    empty = bytes_of(memory)
    kept = prefix_of(1.0).shared(memory)
    one = bytes_of(memory)
    places = []
    for number in range(5):
        shared = prefix_of(number, num_virtual_tokens=100).shared(memory)
        assert bytes_of(memory) > one
        places.append(shared.place)
        del shared
        assert bytes_of(memory) == one
    assert len({place.offset for place in places if place is not None}) == 5
    assert torch.equal(kept.past_key_values, prefix_of(1.0).past_key_values)
    del kept
    assert bytes_of(memory) == empty == 0


def test_a_prefix_takes_no_descriptor() -> None:
    memory = SharedMemory()
    before = len(os.listdir("/proc/self/fd"))
    shared = [prefix_of(number).shared(memory) for number in range(50)]
    seen = [pickle.loads(pickle.dumps(prefix)) for prefix in shared]
    assert len(os.listdir("/proc/self/fd")) == before
    assert [prefix.past_key_values[0, 0, 0, 0, 0].item() for prefix in seen] == list(range(50))


def test_a_view_keeps_the_bytes_alive() -> None:
    memory = SharedMemory()
    view = prefix_of(2.0).shared(memory).past_key_values[0]
    assert view.eq(2.0).all()
    assert bytes_of(memory) > 0


def test_a_store_keeps_its_prefixes_there_and_evicted_ones_no_longer(tmp_path: Path) -> None:
    memory = SharedMemory()
    page = mmap.ALLOCATIONGRANULARITY
    store = PrefixStore(tmp_path, backbone=BACKBONE, cache_bytes=3 * keys_and_values().nbytes, memory=memory)
    try:
        for number in range(9):
            publish(store, f"task-{number}", seed=number)
            prefix = store.get("default", f"task-{number}").prefix
            assert torch.equal(prefix.past_key_values, keys_and_values(number))
            assert prefix.place is not None
        del prefix
        assert bytes_of(memory) == store.stats.num_prefixes * page == 3 * page
    finally:
        store.close()
