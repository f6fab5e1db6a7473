"""What Muon does for a prefix, with twice the steps of the comparison, beside full fine-tuning with as many: E2E, the
same pairs.

A prefix takes more steps than full fine-tuning does, and more from a better optimizer. The search, the early stopping,
the seeds and the test are the comparison's, which has both by AdamW with half the steps.
"""

from statistics import mean

from training.experiments.comparison import PAPER, told, tune
from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of
from training.experiments.trials import Trial

TIMES = 2
# By what is tuned and with which optimizer, where the search begins; None: as for AdamW.
RATES: dict[tuple[str, str], tuple[float, ...] | None] = {
    ("prefix", "muon"): (1e-2, 3e-2, 1e-1, 3e-1),
    ("full", "adamw"): None,
}


def run(lab: Lab) -> Report:
    scale = lab.scale
    max_steps = scale.num_pairs and TIMES * scale.epochs["e2e"] * scale.num_pairs // scale.batch_size
    tuned = {
        (method, optimizer): tune(lab, Trial("e2e", method, optimizer=optimizer, max_steps=max_steps), rates)
        for (method, optimizer), rates in RATES.items()
    }
    bleu = {f"{method}, {optimizer}": mean(found.scores["all"]) for (method, optimizer), found in tuned.items()}
    prefix, full = bleu.values()
    return Report(
        title=f"E2E in {f'{max_steps:,}' if max_steps else 'as many'} steps",
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
        figures={"e2e_prefix_by_muon_vs_finetune": round(prefix / full, 3) if full else None},
    )
