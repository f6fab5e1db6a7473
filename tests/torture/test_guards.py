"""Each guard of `guards.py` is taken out of a copy of the source, and the quick test that is said to need it fails."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.torture.guards import GUARDS, Guard
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__")
PASSED, FAILED = 0, 1  # pytest's exit codes; others are errors of its own


@dataclass(frozen=True)
class Tree:
    """A copy of the source and its tests, with a process that runs the latter."""

    root: Path
    runner: "subprocess.Popen[str]"
    log: Path

    def run(self, *tests: str) -> int:
        """pytest's exit code; the copy's packages are imported, not the installed ones."""
        assert self.runner.stdin is not None
        assert self.runner.stdout is not None
        self.runner.stdin.write(" ".join(f"tests/{test}" for test in tests) + "\n")
        self.runner.stdin.flush()
        return int(self.runner.stdout.readline())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """In which all the guards' tests pass, as long as nothing is taken out."""
    directory = tmp_path_factory.mktemp("guards")
    root, log = directory / "tree", directory / "log"
    shutil.copytree(ROOT, root, ignore=NOT_COPIED)
    command = [sys.executable, "-m", "tests.torture.preloaded"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # or what a guard's lack was compiled to might stay
    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
        ) as runner,
    ):
        tree = Tree(root, runner, log)
        assert tree.run(*dict.fromkeys(guard.test for guard in GUARDS)) == PASSED, log.read_text()[-5000:]
        yield tree


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.name for guard in GUARDS])
def test_without_the_guard_its_test_fails(tree: Tree, report: Report, guard: Guard) -> None:
    path = tree.root / guard.file
    source = path.read_text()
    assert source.count(guard.line) == 1
    path.write_text(source.replace(guard.line, guard.without))
    try:
        code = tree.run(guard.test)
    finally:
        path.write_text(source)
    count(report, guards=1, guards_unguarded=int(code != FAILED))
    assert code == FAILED, tree.log.read_text()[-3000:]
