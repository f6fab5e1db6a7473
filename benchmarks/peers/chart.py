"""Draws tokens per second as bars. Knows nothing of how they were measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw(speeds: Mapping[tuple[str, int], Sequence[float]], path: Path) -> None:
    """A panel for each number of rows, in it a bar of the median for each who ran: `speeds` by both."""
    all_rows = sorted({num_rows for _, num_rows in speeds})
    figure = Figure(figsize=(3.5 * len(all_rows), 3.5), layout="constrained")
    for axis, num_rows in zip(figure.subplots(1, len(all_rows), squeeze=False)[0], all_rows, strict=True):
        medians = {label: statistics.median(speeds[label, rows]) for label, rows in speeds if rows == num_rows}
        labels = sorted(medians, key=medians.__getitem__)
        colors = ["C0" if label.startswith("ours") else "0.7" for label in labels]
        bars = axis.barh(labels, [medians[label] for label in labels], color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=2)
        axis.set_title(f"{num_rows} rows" if num_rows > 1 else "1 row")
        axis.set_xlabel("tokens per second")
        axis.margins(x=0.15)
    figure.savefig(path, dpi=120)
