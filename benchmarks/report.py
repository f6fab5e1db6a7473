"""How a benchmark ends: a table for people, and one line of JSON that names the machine and the commit.

Knows nothing of what was measured.
"""

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def machine() -> str:
    """The processor, the threads that torch uses and torch's version, in words."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    if torch.cuda.is_available():
        processor = f"{torch.cuda.get_device_name()}, {processor}"
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def commit() -> str:
    """The commit that is checked out, with `+` if the tree differs from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def spread(numbers: Sequence[float]) -> str:
    """Median, minimum and maximum."""
    return f"{statistics.median(numbers):.3g} ({min(numbers):.3g} to {max(numbers):.3g})"


def rounded(number: float) -> float:
    """To five significant digits, since a difference may be tiny; a count stays as it is."""
    return number if isinstance(number, int) else float(f"{number:.5g}")


def finish(name: str, rows: Mapping[str, Sequence[float]], figures: Mapping[str, float], out: Path | None) -> None:
    """Print what was measured, then as `finish_table`."""
    table = Table("measured", "median (min to max)", title=name)
    for label, numbers in rows.items():
        table.add_row(label, spread(numbers))
    finish_table(name, table, figures, out)


def finish_table(name: str, table: Table, figures: Mapping[str, float], out: Path | None) -> None:
    """Print the table; write the figures to `out`, if given; end with the JSON line."""
    Console().print(table)
    result = {
        "name": name,
        "machine": machine(),
        "commit": commit(),
        "figures": {key: rounded(value) for key, value in figures.items()},
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
