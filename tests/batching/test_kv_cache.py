"""How many slots there is memory for, and of what kind."""

import mmap

import pytest
import torch

from batching import kv_cache
from batching.kv_cache import KVCache, choose_num_slots
from prefix_store.prefix import BackboneShape

SHAPE = BackboneShape(n_layer=2, n_head=4, head_dim=16, n_positions=1024)
SLOT_BYTES = 2 * SHAPE.n_layer * 1024 * SHAPE.n_embd * 4


def choose(wanted: int | None) -> int:
    return choose_num_slots(wanted, SHAPE, 1024, torch.float32, torch.device("cpu"))


def test_pages_of_files_are_no_memory_that_a_container_has_used(tmp_path, monkeypatch):
    """They are given up when memory is asked for; a model that was just read has left many."""
    monkeypatch.setattr(kv_cache, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{100 * SLOT_BYTES}\n")
    (tmp_path / "memory.current").write_text(f"{98 * SLOT_BYTES}\n")
    (tmp_path / "memory.stat").write_text(f"anon {10 * SLOT_BYTES}\ninactive_file {78 * SLOT_BYTES}\n")
    assert choose(None) == 40
    assert choose(80) == 80
    with pytest.raises(MemoryError, match="81 slots of 1024 tokens need"):
        choose(81)
    (tmp_path / "memory.max").write_text("max\n")
    assert choose(81) == 81


@pytest.mark.parametrize("advice", [None, -1])
def test_a_system_without_large_pages_gives_small_ones(advice, monkeypatch):
    """One that has no such thing, and one that knows of it and was built without."""
    if advice is None:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", advice, raising=False)
    cache = KVCache(SHAPE, 3, 8, torch.bfloat16, torch.device("cpu"))
    for entries in (cache.keys, cache.values):
        assert entries.shape == (2, 3, 4, 8, 16)
        assert entries.dtype == torch.bfloat16
        assert not entries.any()
