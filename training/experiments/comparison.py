"""Prefix-tuning against the other ways of tuning the same backbone on the same data (sections 6.1 and 6.2).

Every method's learning rate is searched in the same way, by dev BLEU; the best one (of prefix and full fine-tuning:
from several seeds) is scored on the test splits by beam search. WebNLG's unseen split holds topics that training has
not (section 6.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from matplotlib.axes import Axes

from training.experiments.lab import Lab, Outcome
from training.experiments.problems import PROBLEMS
from training.experiments.report import Report, bars_of, spread
from training.experiments.trials import Trial

METHODS = {
    "e2e": ("prefix", "full", "lora", "top-two", "embeddings"),
    "commongen": ("prefix", "full"),
    "webnlg": ("prefix", "full"),
}
SEEDED = ("prefix", "full")  # they are run first
# Test BLEU, GPT-2 medium, of the paper's ACL version
PAPER = {
    ("e2e", "all"): {"prefix": 70.3, "full": 68.8},
    ("webnlg", "seen"): {"prefix": 62.9, "full": 64.7},
    ("webnlg", "unseen"): {"prefix": 45.3, "full": 26.7},
}


@dataclass(frozen=True, slots=True)
class Tuned:
    """A way of tuning on one task: the learning rates tried, the best one first, and test BLEU by split and seed."""

    searched: Sequence[Outcome]
    scores: Mapping[str, Sequence[float]]


def run(lab: Lab) -> Report:
    wanted = [(name, method) for name, methods in METHODS.items() for method in methods]
    first = sorted(wanted, key=lambda way: way[1] not in SEEDED)
    tuned = {way: tested(lab, lab.search(Trial(*way))) for way in first}
    rows: list[list[object]] = []
    scores: dict[tuple[str, str, str], Sequence[float]] = {}
    for name, problem in PROBLEMS.items():
        for split in problem.tests:
            for method in METHODS[name]:
                found = tuned[name, method]
                scores[name, split, method] = found.scores[split]
                paper = PAPER.get((name, split), {}).get(method)
                rows.append([problem.title, split, method, *told(found, split, paper)])
            scores[name, split, "bare"] = untuned = bare(lab, name, split)
            nothing = "nothing, three worked examples"
            rows.append([problem.title, split, nothing, None, None, spread(untuned), None, None])

    def ratio(name: str, split: str, other: str) -> float | None:
        theirs = mean(scores[name, split, other])
        return round(mean(scores[name, split, "prefix"]) / theirs, 3) if theirs else None

    def draw(axes: Axes) -> None:
        bars_of(axes, {method: mean(scores["e2e", "all", method]) for method in (*METHODS["e2e"], "bare")}, "BLEU, E2E")

    return Report(
        title="Ways of tuning one backbone",
        columns=[
            "task",
            "test split",
            "tuned",
            "numbers tuned",
            "learning rate",
            "test BLEU",
            "the paper's, GPT-2 medium, whole split",
            "dev BLEU by learning rate",
        ],
        rows=rows,
        draw=draw,
        figures={
            # Both by AdamW: what E2E comes to by a better optimizer is for `optimizers` to say.
            "e2e_prefix_by_adamw_vs_finetune": ratio("e2e", "all", "full"),
            "e2e_prefix_by_adamw_vs_bare": ratio("e2e", "all", "bare"),
            "webnlg_prefix_vs_finetune": ratio("webnlg", "seen", "full"),  # seen topics, as in training
            "webnlg_unseen_prefix_vs_finetune": ratio("webnlg", "unseen", "full"),
            "commongen_prefix_vs_finetune": ratio("commongen", "all", "full"),
        },
    )


def tested(lab: Lab, searched: Sequence[Outcome]) -> Tuned:
    """Train the best of what was searched from every seed and score it on each test split."""
    best = searched[0].trial
    num_seeds = lab.scale.num_seeds if best.method in SEEDED else 1
    seeds = [replace(best, seed=seed) for seed in range(num_seeds)]
    lab.run(seeds)
    return Tuned(searched, {split: lab.test(seeds, split) for split in PROBLEMS[best.problem].tests})


def bare(lab: Lab, name: str, split: str) -> list[float]:
    """Test BLEU of the backbone itself after worked examples, other ones each time."""
    trials = [Trial(name, "bare", subset=subset) for subset in range(lab.scale.num_seeds)]
    lab.run(trials)
    return lab.test(trials, split)


def told(found: Tuned, split: str, paper: float | None) -> list[object]:
    """A row of the table, behind what it is of."""
    return [*told_of_best(found.searched), spread(found.scores[split]), paper, told_of_rates(found.searched)]


def told_of_best(searched: Sequence[Outcome]) -> list[object]:
    return [f"{searched[0].num_tuned:,}", f"{searched[0].trial.learning_rate:g}"]


def told_of_rates(searched: Sequence[Outcome]) -> str:
    return ", ".join(f"{o.trial.learning_rate:g}: {o.dev_bleu:.1f}" for o in by_rate(searched))


def by_rate(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.trial.learning_rate)
