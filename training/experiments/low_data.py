"""Prefix-tuning against fine-tuning with little data (section 6.3): the paper's prefix is better by 2.9 BLEU on
average."""

from dataclasses import replace
from statistics import mean

from training.experiments.initialisation import low_data
from training.experiments.lab import Lab
from training.experiments.problems import PROBLEMS
from training.experiments.report import Report, lines_of, spread
from training.experiments.trials import Trial

METHODS = {"prefix": Trial("e2e", "prefix", init_text=PROBLEMS["e2e"].words), "full": Trial("e2e", "full")}


def run(lab: Lab) -> Report:
    """The learning rate is searched at a middle size, on the first subset."""
    sizes = lab.scale.low_data_sizes
    scores: dict[str, list[list[float]]] = {}
    for method, trial in METHODS.items():
        best = lab.search(low_data(lab, trial, sizes[len(sizes) // 2]))[0].trial
        scores[method] = [
            [o.dev_bleu for o in lab.run(replace(best, num_pairs=size, subset=subset)
                                         for subset in range(lab.scale.num_subsets))]
            for size in sizes
        ]  # fmt: skip
    means = {method: list(map(mean, found)) for method, found in scores.items()}
    return Report(
        title=f"E2E with little data, {lab.scale.low_data_steps} steps",
        columns=["tuned", *(f"{size} pairs" for size in sizes)],
        rows=[[method, *map(spread, found)] for method, found in scores.items()],
        draw=lambda axes: lines_of(axes, sizes, means, "training pairs", "dev BLEU"),
        figures={"low_data_prefix_minus_finetune": round(mean(means["prefix"]) - mean(means["full"]), 2)},
    )
