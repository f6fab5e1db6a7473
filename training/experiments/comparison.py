"""Prefix-tuning against the other ways of tuning the same backbone on the same data (sections 6.1 and 6.2).

Every method gets the same search of its learning rate, by dev BLEU; the best one is trained from several seeds and
scored on the test splits by beam search. WebNLG's unseen split holds topics that training has not (section 6.4).
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from matplotlib.axes import Axes

from training.experiments.lab import Lab, Outcome
from training.experiments.problems import PROBLEMS
from training.experiments.report import Report, bars_of, spread
from training.experiments.trials import Trial

METHODS = {
    "e2e": ("prefix", "full", "top-two", "lora", "embeddings"),
    "webnlg": ("prefix", "full"),
    "commongen": ("prefix", "full"),
}
# Test BLEU, GPT-2 medium, of the paper's ACL version
PAPER = {
    ("e2e", "all"): {"prefix": 70.3, "full": 68.8},
    ("webnlg", "seen"): {"prefix": 62.9, "full": 64.7},
    ("webnlg", "unseen"): {"prefix": 45.3, "full": 26.7},
}


def run(lab: Lab) -> Report:
    rows: list[list[object]] = []
    scores: dict[tuple[str, str, str], Sequence[float]] = {}
    for name, problem in PROBLEMS.items():
        for method in METHODS[name]:
            searched = lab.search(Trial(name, method))
            best = searched[0].trial
            seeds = [replace(best, seed=seed) for seed in range(lab.scale.num_seeds)]
            lab.run(seeds)
            rates = ", ".join(f"{o.trial.learning_rate:g}: {o.dev_bleu:.1f}" for o in by_rate(searched))
            for split in problem.tests:
                found = scores[name, split, method] = lab.test(seeds, split)
                paper = PAPER.get((name, split), {}).get(method)
                rows.append([problem.title, split, method, f"{best.learning_rate:g}", spread(found), paper, rates])
        bare = Trial(name, "bare")
        lab.run([bare])
        for split in problem.tests:
            found = scores[name, split, "bare"] = lab.test([bare], split)
            rows.append([problem.title, split, "nothing, three worked examples", None, spread(found), None, None])

    def ratio(name: str, split: str, other: str) -> float | None:
        theirs = mean(scores[name, split, other])
        return round(mean(scores[name, split, "prefix"]) / theirs, 3) if theirs else None

    def draw(axes: Axes) -> None:
        bars_of(axes, {method: mean(scores["e2e", "all", method]) for method in (*METHODS["e2e"], "bare")}, "BLEU, E2E")

    return Report(
        title="Ways of tuning one backbone",
        columns=["task", "test split", "tuned", "learning rate", "BLEU", "the paper's", "dev BLEU by learning rate"],
        rows=rows,
        draw=draw,
        figures={
            "e2e_prefix_vs_finetune": ratio("e2e", "all", "full"),
            "e2e_prefix_vs_bare": ratio("e2e", "all", "bare"),
            "webnlg_prefix_vs_finetune": ratio("webnlg", "seen", "full"),
            "webnlg_unseen_prefix_vs_finetune": ratio("webnlg", "unseen", "full"),
            "commongen_prefix_vs_finetune": ratio("commongen", "all", "full"),
        },
    )


def by_rate(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.trial.learning_rate)
