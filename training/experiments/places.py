"""Where the tuned positions are: keys and values of all layers or embeddings alone, before the prompt or behind it
(sections 7.2 and 7.3)."""

from dataclasses import replace

from training.experiments.lab import Lab
from training.experiments.report import Report, bars_of
from training.experiments.trials import Trial

LENGTHS = (1, 10, 20)
SEARCHED_LENGTH = 10  # the learning rate is searched there
# Test BLEU on E2E, GPT-2 medium (version 1), for 1, 10 and 20 positions; for the prefix it has 69.7 at its best length
PAPER = {"prefix": (None, None, None), "infix": (67.9, 67.2, 66.7), "embeddings": (48.1, 62.2, 61.9)}


def run(lab: Lab) -> Report:
    rows: list[list[object]] = []
    for method, paper in PAPER.items():
        searched = Trial("e2e", method, num_virtual_tokens=SEARCHED_LENGTH, max_steps=lab.scale.ablation_steps)
        best = lab.search(searched)[0].trial
        outcomes = lab.run(replace(best, num_virtual_tokens=length) for length in LENGTHS)
        for length, outcome, score in zip(LENGTHS, outcomes, paper, strict=True):
            rows.append([method, length, f"{best.learning_rate:g}", outcome.dev_bleu, outcome.dev_loss, score])
    heights = {f"{row[0]} {row[1]}": float(str(row[3])) for row in rows}
    return Report(
        title="E2E by what is tuned and where",
        columns=[
            "tuned",
            "positions",
            "learning rate",
            "dev BLEU",
            "dev loss",
            "the paper's test BLEU, GPT-2 medium, version 1",
        ],
        rows=rows,
        draw=lambda axes: bars_of(axes, heights, "dev BLEU"),
    )
