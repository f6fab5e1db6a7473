"""The simulated fleet in three panels: what is found in memory, what affinity does to waits, and a loss.

Knows what was told. Knows nothing of how it came about.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.fleet.questions import GIBIBYTES, Recovery, Spread

LINES = {"fewest of two": "--", "bounded affinity": "-"}


def draw(path: Path, spreads: Sequence[Spread], recoveries: Sequence[Recovery]) -> None:
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    hits, waits, losses = figure.subplots(1, 3)
    _draw_hits(hits, spreads)
    _draw_waits(waits, spreads)
    _draw_losses(losses, recoveries)
    for axis in (hits, waits, losses):
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def _draw_hits(axis: Axes, spreads: Sequence[Spread]) -> None:
    for router, line in LINES.items():
        for number, gibibytes in enumerate(GIBIBYTES):
            shown = [each for each in spreads if each.router == router and each.gibibytes == gibibytes]
            axis.plot(
                [each.popularity for each in shown],
                [each.hit_rate for each in shown],
                line,
                marker="o",
                color=f"C{number}",
                label=f"{router}, {gibibytes} GiB",
            )
    axis.set(title="prefixes found in memory", ylim=(0, 1), ylabel="share of requests")


def _draw_waits(axis: Axes, spreads: Sequence[Spread]) -> None:
    for router in dict.fromkeys(each.router for each in spreads):
        shown = [each for each in spreads if each.router == router and each.gibibytes == GIBIBYTES[0]]
        axis.plot([each.popularity for each in shown], [each.p99 for each in shown], marker="o", label=router)
    axis.set(title=f"whole answers with {GIBIBYTES[0]} GiB each", yscale="log", ylabel="p99, seconds")


def _draw_losses(axis: Axes, recoveries: Sequence[Recovery]) -> None:
    for number, num_lost in enumerate(dict.fromkeys(each.num_lost for each in recoveries)):
        for each in recoveries:
            if each.num_lost == num_lost:
                axis.plot(
                    [window.begin for window in each.windows],
                    [window.p99 for window in each.windows],
                    LINES[each.router],
                    color=f"C{number}",
                    label=f"{num_lost} lost, {each.router}",
                )
    axis.set(title="a loss", ylim=(0, None), xlabel="seconds from the loss", ylabel="p99 of whole answers, seconds")
