"""The report that the long tests write: one JSON object, where `TORTURE_REPORT` names a file for it."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.report import commit, machine
from tests.torture.plots import Curves

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def report() -> Iterator[dict[str, float]]:
    figures: dict[str, float] = {}
    yield figures
    if path := os.environ.get("TORTURE_REPORT"):
        write_report(Path(path), figures)


@pytest.fixture(scope="session")
def curves() -> Iterator[Curves]:
    """What each tenant was served over time: a plot beside the report, once all of its panels were measured."""
    curves = Curves()
    yield curves
    if (path := os.environ.get("TORTURE_REPORT")) and curves.are_complete:
        curves.draw(Path(path).with_name("fairness.png"))


def write_report(path: Path, figures: dict[str, float]) -> None:
    """Put the figures of this run in the place of those of the same name; others stay, with the commit they are of.

    Several processes may do so, each with figures of its own.
    """
    with locked(path.parent):
        old = json.loads(path.read_text()) if path.exists() else {"figures": {}, "commits": {}}
        commits = {**old["commits"], **dict.fromkeys(figures, commit())}
        result = {"name": "torture", "machine": machine(), "figures": {**old["figures"], **figures}, "commits": commits}
        path.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which puts faults into system calls (Debian: apt-get install strace)")
