"""The report that the long tests write: one JSON object, where `TORTURE_REPORT` names a file for it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.report import commit, machine

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def report() -> Iterator[dict[str, int]]:
    counts: dict[str, int] = {}
    yield counts
    if path := os.environ.get("TORTURE_REPORT"):
        result = {"name": "torture", "machine": machine(), "commit": commit(), "figures": counts}
        Path(path).write_text(json.dumps(result, indent=2) + "\n")


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which puts faults into system calls (Debian: apt-get install strace)")
