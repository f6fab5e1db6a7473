"""What Muon does for a prefix and for full fine-tuning, with twice the steps of the comparison: E2E, the same pairs.

A prefix takes more steps than full fine-tuning does, and more from a better optimizer. The search, the early stopping,
the seeds and the test are the comparison's, which has both by AdamW with half the steps. The optimizer of full
fine-tuning is chosen as its rate is, by dev BLEU.
"""

from statistics import mean

from training.experiments.comparison import PAPER, bare, told, tune
from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of
from training.experiments.trials import Trial

TIMES = 2
WAYS = (("prefix", "muon"), ("full", "adamw"), ("full", "muon"))


def run(lab: Lab) -> Report:
    epochs = TIMES * lab.scale.epochs["e2e"]
    tuned = {
        (method, optimizer): tune(lab, Trial("e2e", method, optimizer=optimizer, epochs=epochs))
        for method, optimizer in WAYS
    }
    bleu = {f"{method}, {optimizer}": mean(found.scores["all"]) for (method, optimizer), found in tuned.items()}
    untuned = mean(bare(lab, "e2e", "all"))
    chosen = {
        method: max((way for way in WAYS if way[0] == method), key=lambda way: tuned[way].searched[0].dev_bleu)
        for method in ("prefix", "full")
    }
    prefix, full = (bleu[", ".join(way)] for way in chosen.values())
    return Report(
        title=f"E2E in up to {epochs} epochs",
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
        draw=lambda axes: bars_of(axes, {**bleu, "bare": untuned}, "test BLEU, E2E"),
        figures={
            "e2e_prefix_vs_finetune": round(prefix / full, 3) if full else None,
            "e2e_prefix_vs_bare": round(prefix / untuned, 3) if untuned else None,
        },
    )
