"""Tuning through the MLP against tuning keys and values directly (section 4.3), at the same learning rates, the
paper's among them, from a random start and (not the paper's) from training examples. The paper finds direct tuning
unstable and slightly worse."""

from dataclasses import replace

from matplotlib.axes import Axes

from training.experiments.lab import Lab
from training.experiments.report import Report, lines_of
from training.experiments.scales import EXAMPLES, RANDOM
from training.experiments.trials import Trial

PAPER_RATE = 8e-5
RATES = (PAPER_RATE, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MLP_WIDTH = 512
WAYS = {
    "MLP, random": Trial("e2e", "prefix", mlp_width=MLP_WIDTH, init_text=RANDOM),
    "MLP, examples": Trial("e2e", "prefix", mlp_width=MLP_WIDTH, init_text=EXAMPLES),
    "direct, random": Trial("e2e", "prefix", mlp_width=0, init_text=RANDOM),
    "direct, examples": Trial("e2e", "prefix", mlp_width=0, init_text=EXAMPLES),
}


def run(lab: Lab) -> Report:
    found = {
        way: lab.run(replace(trial, learning_rate=rate, max_steps=lab.scale.ablation_steps) for rate in RATES)
        for way, trial in WAYS.items()
    }
    series = {way: [o.dev_bleu for o in outcomes] for way, outcomes in found.items()}

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        lines_of(axes, RATES, series, "learning rate", "dev BLEU")

    return Report(
        title="E2E by learning rate, through the MLP and directly",
        columns=["learning rate", *(f"{way}: {what}" for way in WAYS for what in ("dev BLEU", "dev loss"))],
        rows=[
            [f"{rate:g}", *(value for way in WAYS for value in (found[way][i].dev_bleu, found[way][i].dev_loss))]
            for i, rate in enumerate(RATES)
        ],
        draw=draw,
        figures={f"best_dev_bleu, {way}": max(scores) for way, scores in series.items()},
    )
