"""What Muon does for a prefix and for full fine-tuning, in twice the epochs of the comparison: E2E, the same pairs.

A prefix takes more steps than full fine-tuning does, and more from a better optimizer. The search, the early stopping,
the seeds and the test are the comparison's, which has both by AdamW in half the epochs. The optimizer is searched as
the rate is, by dev BLEU, and what is best is tested.
"""

from statistics import mean

from training.experiments.comparison import bare, tested, told_of_best, told_of_rates
from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of, spread
from training.experiments.trials import Trial

TIMES = 2
OPTIMIZERS = {"prefix": ("muon",), "full": ("adamw", "muon")}


def run(lab: Lab) -> Report:
    epochs = TIMES * lab.scale.epochs["e2e"]
    scores: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    for method, optimizers in OPTIMIZERS.items():
        searches = [lab.search(Trial("e2e", method, optimizer=optimizer, epochs=epochs)) for optimizer in optimizers]
        best = max(searches, key=lambda searched: searched[0].dev_bleu)
        scores[method] = list(tested(lab, best).scores["all"])
        for optimizer, searched in zip(optimizers, searches, strict=True):
            test = spread(scores[method]) if searched is best else None
            rows.append([method, optimizer, *told_of_best(searched), test, told_of_rates(searched)])
    bleu = {name: mean(found) for name, found in {**scores, "bare": bare(lab, "e2e", "all")}.items()}
    return Report(
        title=f"E2E in up to {epochs} epochs",
        columns=["tuned", "optimizer", "numbers tuned", "learning rate", "test BLEU", "dev BLEU by learning rate"],
        rows=rows,
        draw=lambda axes: bars_of(axes, bleu, "test BLEU, E2E"),
        figures={
            f"e2e_prefix_vs_{name}": round(bleu["prefix"] / bleu[other], 3) if bleu[other] else None
            for name, other in (("finetune", "full"), ("bare", "bare"))
        },
    )
