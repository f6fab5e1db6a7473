"""How long a prefix should be (section 7.1). The paper's best for table-to-text is 10, then a slight drop."""

from dataclasses import replace

from training.experiments.lab import Lab
from training.experiments.report import Report, lines_of
from training.experiments.trials import Trial


def run(lab: Lab) -> Report:
    best = lab.search(Trial("e2e", "prefix"))[0].trial
    lengths = lab.scale.lengths
    trial = replace(best, max_steps=lab.scale.ablation_steps)
    outcomes = lab.run(replace(trial, num_virtual_tokens=length) for length in lengths)
    rows = [[length, o.dev_bleu, o.dev_loss] for length, o in zip(lengths, outcomes, strict=True)]
    return Report(
        title="E2E by length of the prefix",
        columns=["virtual tokens", "dev BLEU", "dev loss"],
        rows=rows,
        draw=lambda axes: lines_of(
            axes, lengths, {"dev BLEU": [o.dev_bleu for o in outcomes]}, "virtual tokens", "BLEU"
        ),
    )
