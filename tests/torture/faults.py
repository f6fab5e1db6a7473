"""Faults of the kernel, put into a running writer by strace: a kill or an error at the nth call of one kind.

Knows strace's options and its log. Knows nothing of stores.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# What changes files, their folders, or what is durable of them.
CALLS = (
    "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat", "openat",
    "ftruncate", "fallocate", "mkdir", "mkdirat", "rmdir", "link", "linkat", "fchmod", "fcntl", "close",
)  # fmt: skip
# Failing these would be no fault of a disk: a lock or a descriptor that cannot be given back.
NEVER_FAILING = {"fcntl", "close"}


@dataclass(frozen=True, slots=True)
class Point:
    """The `nth` call of `name` after the writer was told to go; `line` is how a run without faults logged it."""

    name: str
    nth: int
    line: str

    def __str__(self) -> str:
        return f"{self.name} {self.nth} ({self.line})"


@contextmanager
def traced(pid: int, log: Path, *, inject: str | None = None) -> Iterator[None]:
    """Have strace follow the process and its threads from here on, with a fault if one is given."""
    command = ["strace", "-f", "-y", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    if inject is not None:
        command += ["-e", f"inject={inject}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        if "attached" not in attached:
            strace.terminate()
            raise RuntimeError(f"strace cannot follow the writer: {attached}{strace.stderr.read()}")
        try:
            yield
        finally:
            strace.terminate()  # it lets go of the process


def points(log: Path) -> list[Point]:
    """Every call of a run without faults."""
    counts: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if match := re.match(r"\d+ +(\w+)\(", line):
            name = match.group(1)
            counts[name] += 1
            found.append(Point(name, counts[name], line.split(" ", 1)[1].strip()))
    return found


def has_failed(log: Path) -> bool:
    """Whether an error was put in."""
    return "(INJECTED)" in log.read_text()


_CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_ON_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_PATHS = re.compile(r'"([^"]*)"')


def not_durable(log: Path, known: Collection[str] = ()) -> list[str]:
    """What a loss of power could undo: at the registry's first write, and at the end.

    A file that was written and not synced, or a folder that got an entry and was not. A removal need not last, nor
    SQLite's shared memory. `known` files are opened again, not made.
    """
    unsynced: set[str] = set()
    found = []
    has_committed = False
    for name, arguments, result in _CALL.findall(log.read_text()):
        if result.startswith("-"):
            continue
        paths, on_descriptor = _PATHS.findall(arguments), _ON_DESCRIPTOR.match(arguments)
        if name in ("write", "pwrite64") and on_descriptor:
            if on_descriptor.group(1).endswith("-wal") and not has_committed:
                has_committed = True
                found += [f"{path} when the registry is written" for path in unsynced]
            if not on_descriptor.group(1).endswith("-shm"):
                unsynced.add(on_descriptor.group(1))
        elif name in ("fsync", "fdatasync") and on_descriptor:
            unsynced.discard(on_descriptor.group(1))
        elif name == "mkdir" or (name == "openat" and "O_CREAT" in arguments and paths[0] not in known):
            unsynced.add(str(Path(paths[0]).parent))
        elif name == "rename":
            if paths[0] in unsynced:
                unsynced.add(paths[1])
            unsynced.discard(paths[0])
            unsynced.add(str(Path(paths[1]).parent))
        elif name == "unlink":
            unsynced.discard(paths[0])
    return found + [f"{path} when it is acknowledged" for path in sorted(unsynced)]
