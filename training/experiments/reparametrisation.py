"""Tuning through the MLP against tuning keys and values directly (section 4.3), at the same learning rates, the
paper's among them. The paper finds direct tuning unstable and slightly worse."""

from dataclasses import replace

from matplotlib.axes import Axes

from training.experiments.lab import Lab
from training.experiments.report import Report, lines_of
from training.experiments.trials import Trial

PAPER_RATE = 8e-5
WAYS = {"through the MLP": None, "directly": 0}


def run(lab: Lab) -> Report:
    rates = sorted({PAPER_RATE, *lab.scale.learning_rates["prefix"], 1e-2})
    trials = [Trial("e2e", "prefix", learning_rate=rate) for rate in rates]
    found = {way: lab.run(replace(trial, mlp_width=width) for trial in trials) for way, width in WAYS.items()}
    series = {way: [o.dev_bleu for o in outcomes] for way, outcomes in found.items()}

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        lines_of(axes, rates, series, "learning rate", "dev BLEU")

    return Report(
        title="E2E by learning rate, through the MLP and directly",
        columns=["learning rate", *(f"{way}: {what}" for way in WAYS for what in ("dev BLEU", "dev loss"))],
        rows=[
            [f"{rate:g}", *(value for way in WAYS for value in (found[way][i].dev_bleu, found[way][i].dev_loss))]
            for i, rate in enumerate(rates)
        ],
        draw=draw,
        figures={
            f"best_dev_bleu_{'mlp' if width is None else 'direct'}": max(series[way]) for way, width in WAYS.items()
        },
    )
