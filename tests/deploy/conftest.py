"""The report that these tests write: one JSON object, where `OPERATIONS_REPORT` names a file for it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.report import commit, machine


@pytest.fixture(scope="session")
def report() -> Iterator[dict[str, float]]:
    """Figures of this run take the place of those of the same name; others stay, with the commit they are of."""
    figures: dict[str, float] = {}
    yield figures
    if figures and (name := os.environ.get("OPERATIONS_REPORT")):
        path = Path(name)
        old = json.loads(path.read_text()) if path.exists() else {"figures": {}, "commits": {}}
        result = {
            "name": "operations",
            "machine": machine(),
            "figures": {**old["figures"], **figures},
            "commits": {**old["commits"], **dict.fromkeys(figures, commit())},
        }
        path.write_text(json.dumps(result, indent=2) + "\n")
