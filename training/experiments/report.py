"""What an experiment leaves behind: a table in Markdown, a plot, and a JSON of both with the command that made them.

Knows files and matplotlib. Knows nothing of what is compared.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("agg")

DOTS_PER_INCH = 120


@dataclass(frozen=True, slots=True)
class Report:
    """One experiment's table and plot. `figures` are the numbers that it is for, by the names they are known by."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    draw: Callable[[Axes], None]
    figures: Mapping[str, object] = field(default_factory=dict)

    def write(self, folder: Path, name: str, made_with: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(self.table(), encoding="utf-8")
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_title(self.title)
        self.draw(axes)
        figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
        content = {
            "made_with": made_with,
            "figures": self.figures,
            "table": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def table(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def shown(cell: object) -> str:
    """A loss with two decimals, and a score of a hundred with one."""
    if not isinstance(cell, float):
        return "–" if cell is None else str(cell)
    return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.2f}" if abs(cell) < 10 else f"{cell:.1f}"


def spread(scores: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(scores):.1f} ± {stdev(scores):.1f}" if len(scores) > 1 else f"{mean(scores):.1f}"


def lines_of(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> None:
    for label, y in series.items():
        axes.plot(x, y, marker="o", label=label)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend()


def bars_of(axes: Axes, heights: Mapping[str, float], ylabel: str) -> None:
    axes.bar(list(heights), list(heights.values()))
    axes.set_ylabel(ylabel)
    axes.tick_params(axis="x", rotation=30)
