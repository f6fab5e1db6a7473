"""The tasks of the paper's comparisons, and which files of a data folder they are read from.

Knows file names and formats. Knows nothing of models. CommonGen is not the paper's; it takes the place of a third task
that a small model can learn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.examples import Example, read_examples
from training.metrics import Bleu, bleu_e2e, bleu_webnlg


@dataclass(frozen=True, slots=True)
class Problem:
    """A task with its training set, its dev set and test splits by name; `other_files` are what they and the targets
    are read from. `words` say what it is, for initialisation."""

    title: str
    format_name: str
    train: str
    dev: str
    other_files: tuple[str, ...]
    tests: Mapping[str, Callable[[Path], Sequence[Example]]]
    bleu: Callable[[Sequence[str], Sequence[Sequence[str]]], Bleu]
    words: str
    max_new_tokens: int

    @property
    def files(self) -> tuple[str, ...]:
        return self.train, self.dev, *self.other_files

    def read_train(self, data: Path) -> list[Example]:
        return read_examples(data / self.train, self.format_name)

    def read_dev(self, data: Path) -> list[Example]:
        return read_examples(data / self.dev, self.format_name)


E2E_TEST = "e2e/testset_w_refs.csv"
COMMONGEN_TEST = "commongen/commongen.test.src_alpha.txt"
COMMONGEN_TARGETS = tuple(f"commongen/commongen.{split}.tgt.txt" for split in ("train", "dev", "test"))
WEBNLG_TEST, WEBNLG_UNSEEN = "webnlg2017/test.jsonl", "webnlg2017/test_unseen.jsonl"


def whole(path: str, format_name: str) -> Callable[[Path], list[Example]]:
    return lambda data: read_examples(data / path, format_name)


def webnlg_seen(data: Path) -> list[Example]:
    unseen = {example.inputs for example in read_examples(data / WEBNLG_UNSEEN, "webnlg")}
    everything = read_examples(data / WEBNLG_TEST, "webnlg")
    return [example for example in everything if example.inputs not in unseen]


PROBLEMS = {
    "e2e": Problem(
        title="E2E",
        format_name="e2e",
        train="e2e/trainset.csv",
        dev="e2e/devset.csv",
        other_files=(E2E_TEST,),
        tests={"all": whole(E2E_TEST, "e2e")},
        bleu=bleu_e2e,
        words="table-to-text-restaurant:",
        max_new_tokens=100,
    ),
    "webnlg": Problem(
        title="WebNLG 2017",
        format_name="webnlg",
        train="webnlg2017/train.jsonl",
        dev="webnlg2017/dev.jsonl",
        other_files=(WEBNLG_TEST, WEBNLG_UNSEEN),
        tests={"seen": webnlg_seen, "unseen": whole(WEBNLG_UNSEEN, "webnlg")},
        bleu=bleu_webnlg,
        words="triples-to-text:",
        max_new_tokens=100,
    ),
    "commongen": Problem(
        title="CommonGen",
        format_name="commongen",
        train="commongen/commongen.train.src_alpha.txt",
        dev="commongen/commongen.dev.src_alpha.txt",
        other_files=(COMMONGEN_TEST, *COMMONGEN_TARGETS),
        tests={"all": whole(COMMONGEN_TEST, "commongen")},
        bleu=bleu_e2e,
        words="sentence with these words:",
        max_new_tokens=40,
    ),
}
