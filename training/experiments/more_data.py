"""Prefix-tuning against full fine-tuning with more data: E2E with ten times the pairs of the other experiments, each
of them read once. At the paper's scale those have the whole training set, and so has this."""

from statistics import mean

from training.experiments.comparison import PAPER, SEEDED, tested, told
from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of
from training.experiments.trials import Trial

TIMES = 10


def run(lab: Lab) -> Report:
    """Each with the search, the seeds and the test of the comparison."""
    num_pairs = lab.scale.num_pairs and TIMES * lab.scale.num_pairs
    max_steps = num_pairs and num_pairs // lab.scale.batch_size["e2e"]
    trials = {method: Trial("e2e", method, num_pairs=num_pairs, max_steps=max_steps) for method in SEEDED}
    tuned = {method: tested(lab, lab.search(trial)) for method, trial in trials.items()}
    bleu = {method: mean(found.scores["all"]) for method, found in tuned.items()}
    return Report(
        title=f"E2E with {f'{num_pairs:,}' if num_pairs else 'all'} training pairs",
        columns=["tuned", "numbers tuned", "learning rate", "test BLEU", "the paper's", "dev BLEU by learning rate"],
        rows=[[method, *told(found, "all", PAPER["e2e", "all"][method])] for method, found in tuned.items()],
        draw=lambda axes: bars_of(axes, bleu, "test BLEU, E2E"),
        figures={"e2e_prefix_vs_finetune_more_data": round(bleu["prefix"] / bleu["full"], 3) if bleu["full"] else None},
    )
