"""What Muon does for a prefix and for full fine-tuning, with twice the steps of the comparison: E2E, the same pairs.

A prefix takes more steps than full fine-tuning, and more from a better optimizer. So both have both: the search, the
early stopping and the test are the comparison's, each optimizer's learning rate is searched, and the better one by dev
BLEU is run from several seeds. A prefix by AdamW is in the comparison.
"""

from dataclasses import replace
from statistics import mean

from training.experiments.comparison import PAPER, Tuned, told
from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of
from training.experiments.trials import Trial

TIMES = 2
# By what is tuned and with which optimizer; None: as for AdamW. Muon's rates for a prefix suit no weights.
RATES: dict[tuple[str, str], tuple[float, ...] | None] = {
    ("prefix", "muon"): (1e-2, 3e-2, 1e-1, 3e-1),
    ("full", "adamw"): None,
    ("full", "muon"): None,
}


def run(lab: Lab) -> Report:
    scale = lab.scale
    max_steps = scale.num_pairs and TIMES * scale.epochs["e2e"] * scale.num_pairs // scale.batch_size
    searched = {
        (method, optimizer): lab.search(Trial("e2e", method, optimizer=optimizer, max_steps=max_steps), rates)
        for (method, optimizer), rates in RATES.items()
    }
    best = {
        method: max((way for way in searched if way[0] == method), key=lambda way: searched[way][0].dev_bleu)
        for method, _ in searched
    }
    tuned = {}
    for way, outcomes in searched.items():
        num_seeds = scale.num_seeds if way in best.values() else 1
        trials = [replace(outcomes[0].trial, seed=seed) for seed in range(num_seeds)]
        lab.run(trials)
        tuned[way] = Tuned(outcomes, {"all": lab.test(trials, "all")})
    bleu = {f"{method}, {optimizer}": mean(found.scores["all"]) for (method, optimizer), found in tuned.items()}
    prefix, full = (mean(tuned[best[method]].scores["all"]) for method in ("prefix", "full"))
    return Report(
        title=f"E2E by AdamW and by Muon, {f'{max_steps:,} steps at most' if max_steps else 'the whole training set'}",
        columns=[
            "tuned",
            "optimizer",
            "numbers tuned",
            "learning rate",
            "test BLEU",
            "the paper's",
            "dev BLEU by learning rate",
        ],
        rows=[[*way, *told(found, "all", PAPER["e2e", "all"][way[0]])] for way, found in tuned.items()],
        draw=lambda axes: bars_of(axes, bleu, "test BLEU, E2E"),
        figures={"e2e_prefix_vs_finetune_best_optimizer": round(prefix / full, 3) if full else None},
    )
