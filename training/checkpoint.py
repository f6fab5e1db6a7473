"""Keeps a run's state on disk, so that a killed run goes on where it was.

Knows files. A checkpoint appears whole or not at all, and is read without unpickling code (`weights_only=True`).
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from prefix_store.disk import write_durably
from training.errors import BadExamples, OtherRun

State = dict[str, Any]  # tensors, numbers, texts, and lists and dicts of them


def write_whole(path: Path, body: bytes) -> None:
    """Write beside the file, flush to the disk, then rename over it. Raises OSError, and leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        unfinished.unlink(missing_ok=True)  # of a run that was killed
        write_durably(unfinished, body)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def save_checkpoint(path: Path, state: State) -> None:
    body = io.BytesIO()
    torch.save(state, body)
    write_whole(path, body.getvalue())


def load_checkpoint(path: Path, made_with: Mapping[str, object]) -> State | None:
    """Read the state, on the CPU; None when there is none. Raises `OtherRun` unless it was `made_with` the same."""
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        found: Mapping[str, object] = state["made_with"]
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise OtherRun(f"{path} is damaged ({error!r}); start afresh, without --resume") from error
    check_same_run(path, found, made_with)
    return state


def sha256_of(paths: Iterable[Path]) -> str:
    """Of what files hold, one after another. Raises `BadExamples` where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise BadExamples(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def check_same_run(path: Path, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        name = differing[0]
        raise OtherRun(
            f"{path} was made with another {', '.join(differing)} ({name} {found.get(name)!r}, now {expected[name]!r})"
            "; give the same again, or start afresh: without --resume, or in an empty folder"
        )
