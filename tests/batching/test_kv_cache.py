"""How many slots there is memory for."""

import pytest
import torch

from batching import kv_cache
from batching.kv_cache import choose_num_slots
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
