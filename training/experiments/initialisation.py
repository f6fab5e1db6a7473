"""How a prefix starts, with little data (section 7.4): at random, or as the activations of words that have nothing to
do with the task, of words that name it, or (not the paper's) of training examples. The paper finds words better, and
the task's own best."""

from dataclasses import replace
from statistics import mean

from training.experiments.lab import Lab
from training.experiments.problems import PROBLEMS
from training.experiments.report import Report, lines_of, spread
from training.experiments.scales import EXAMPLES, RANDOM
from training.experiments.trials import Trial

STARTS = {
    "random": RANDOM,
    "unrelated words": "elephant",
    "task words": PROBLEMS["e2e"].words,
    "training examples": EXAMPLES,
}


def run(lab: Lab) -> Report:
    sizes = lab.scale.low_data_sizes
    scores: dict[str, list[list[float]]] = {}
    for start, text in STARTS.items():
        best = lab.search(low_data(lab, Trial("e2e", "prefix", init_text=text), sizes[-1]))[0].trial
        scores[start] = [
            [o.dev_bleu for o in lab.run(replace(best, num_pairs=size, subset=subset)
                                         for subset in range(lab.scale.num_subsets))]
            for size in sizes
        ]  # fmt: skip
    return Report(
        title=f"E2E with little data, {lab.scale.low_data_steps} steps, by how the prefix starts",
        columns=["start", *(f"{size} pairs" for size in sizes)],
        rows=[[start, *map(spread, found)] for start, found in scores.items()],
        draw=lambda axes: lines_of(
            axes,
            sizes,
            {start: list(map(mean, found)) for start, found in scores.items()},
            "training pairs",
            "dev BLEU",
        ),
    )


def low_data(lab: Lab, trial: Trial, num_pairs: int) -> Trial:
    return replace(trial, num_pairs=num_pairs, max_steps=lab.scale.low_data_steps)
