"""Which processes a process has started, as the kernel tells it."""

from pathlib import Path


def child_pids(pid: int) -> list[int]:
    """Those that run or have not been waited for, the oldest first."""
    return sorted(int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent_of(path) == pid)


def _parent_of(path: Path) -> int | None:
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return None
    return int(fields[1])
