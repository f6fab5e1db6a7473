"""METEOR, CIDEr and ROUGE-L by coco-caption's own code (the extra `metrics`), which needs Java.

Knows pycocoevalcap. Everything is tokenized by its PTB tokenizer first, as the E2E challenge's script does.
"""

import shutil
from collections.abc import Sequence

from training.errors import TrainingError

try:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
except ModuleNotFoundError:  # the extra is not installed: `check_available` says so
    Cider = Meteor = Rouge = PTBTokenizer = None


class CocoUnavailable(TrainingError):
    """pycocoevalcap or Java is missing."""


def check_available() -> None:
    if PTBTokenizer is None:
        raise CocoUnavailable("METEOR and CIDEr need pycocoevalcap: pip install 'polyprefix[metrics]'")
    if shutil.which("java") is None:
        raise CocoUnavailable("METEOR and CIDEr need Java, and there is no `java` on the path")


def coco_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`meteor`, `rouge_l_ptb` (0 to 1) and `cider` (0 to 10). Raises `CocoUnavailable`."""
    check_available()
    tokenizer = PTBTokenizer()
    given = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    found = tokenizer.tokenize({i: [{"caption": answer}] for i, answer in enumerate(answers)})
    scorers = {"meteor": Meteor(), "cider": Cider(), "rouge_l_ptb": Rouge()}
    try:
        return {name: float(scorer.compute_score(given, found)[0]) for name, scorer in scorers.items()}
    finally:
        end_meteor(scorers["meteor"])


def end_meteor(meteor: "Meteor") -> None:
    """Its Java process would otherwise live as long as ours."""
    process = meteor.meteor_p
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    process.wait()
