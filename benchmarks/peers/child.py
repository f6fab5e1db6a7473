"""A peer as a child process, in an environment that is made for it once.

Knows pip and pipes. Knows nothing of what is measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
REST_SECONDS = 0.5  # until a child's threads sleep: some OpenMP's go on looking for work for 0.2 s


class PeerError(Exception):
    """A peer that could not be installed, started or asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`module` is one of this package; `environment` names its requirements, None is the environment we run in."""

    module: str
    environment: str | None = None
    options: tuple[str, ...] = ()


class Child:
    """A peer that is ready. It computes while it is asked, and only then."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        """Waits until it is ready; raises `PeerError`."""
        self._process, self._log = process, log
        self._hear()

    def tokens_per_second(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> float:
        """By the peer's own clock, from the prompts to the last token of all. Raises `PeerError`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, and left its reason
            self._process.stdin.write(json.dumps({"prompts": prompts, "num_new_tokens": num_new_tokens}) + "\n")
            self._process.stdin.flush()
        answer = json.loads(self._hear())
        assert answer["num_tokens"] == len(prompts) * num_new_tokens, answer
        time.sleep(REST_SECONDS)
        return float(answer["num_tokens"] / answer["seconds"])

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()  # its reason comes last
            raise PeerError(last_line(self._log.read_text(errors="replace")))
        return line


@contextmanager
def running(peer: Peer, model: Path, num_threads: int) -> Iterator[Child]:
    """The peer on the checkpoint in `model`, until the block ends; raises `PeerError`."""
    python = sys.executable if peer.environment is None else python_of(peer.environment)
    command = [str(python), "-m", f"benchmarks.peers.{peer.module}", str(model), str(num_threads), *peer.options]
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.NamedTemporaryFile(prefix="peer-", suffix=".log") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        with process:  # closes its standard input, which ends it, and waits
            yield Child(process, Path(log.name))


def python_of(environment: str) -> Path:
    """The interpreter of `.venv-peers/ENVIRONMENT`, made now where its requirements changed or it is not there."""
    requirements = Path(__file__).with_name(f"requirements-{environment}.txt")
    folder = ENVIRONMENTS / environment
    python, installed = folder / "bin" / "python", folder / ".installed"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"installing {requirements.name} in {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(requirements)]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PeerError(last_line(done.stderr))
        installed.write_text(requirements.read_text())
    return python


def last_line(text: str) -> str:
    """What a program said last, which is why it ended."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it ended without a word")
