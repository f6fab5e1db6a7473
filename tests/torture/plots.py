"""Draws what each tenant was served over time. Knows moments and tokens; nothing of servers."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

TITLES = {
    "fair_equal_ratio": "equal weights",
    "fair_ten_tasks_ratio": "ten tasks against one",
    "fair_weight_3_ratio": "weights 3 : 1",
}


class Curves:
    """Tokens a second by tenant, one panel for each measurement."""

    def __init__(self) -> None:
        self._panels: dict[str, Mapping[str, Counter[int]]] = {}

    @property
    def are_complete(self) -> bool:
        return self._panels.keys() == TITLES.keys()

    def add(self, figure: str, tokens: Mapping[str, Counter[int]]) -> None:
        """What each tenant was sent in each second."""
        self._panels[figure] = tokens

    def draw(self, path: Path) -> None:
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        axes = figure.subplots(1, len(TITLES), sharey=True)
        for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
            for tenant, by_second in self._panels[name].items():
                seconds = range(max(by_second))  # the last one is not whole
                axis.plot(seconds, [by_second[second] for second in seconds], label=f"{tenant} tenant")
            axis.set_title(title)
            axis.set_xlabel("seconds")
        axes[0].set_ylabel("new tokens a second")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(loc="lower right")
        figure.savefig(path, dpi=120)
