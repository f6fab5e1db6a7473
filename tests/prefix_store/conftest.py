"""What every test of the store needs: one tiny backbone's numbers, and a store in a directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from prefix_store.store import PrefixStore
from tests.prefix_store.support import BACKBONE

torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PrefixStore]:
    opened = PrefixStore(tmp_path, backbone=BACKBONE)
    yield opened
    opened.close()
