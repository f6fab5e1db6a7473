"""The seven tasks of the pocket model: their data, what a prefix for each is given to learn with, and a word on each.

Knows the data files and how a task's input is written. Knows nothing of tokens or tensors. All inputs go through the
one prompt template of `packing`.
"""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from training.pocket.corpus import read_lines, read_sgd, read_wikisplit
from training.pocket.pairs import Pair, dialogue_fields, render

References = dict[str, list[str]]  # dev: input -> every reference, in file order


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what it is called and read from, and the size and schedule of its prefix."""

    task_id: str
    title: str
    description: str
    read: Callable[[Path], tuple[list[Pair], References]]
    num_virtual_tokens: int
    minutes: float
    max_new_tokens: int
    learning_rate: float = 1e-3


def read_e2e(data: Path) -> tuple[list[Pair], References]:
    """Restaurant records: `name : The Vaults | eatType : pub` -> a description."""
    train, dev = (_read_e2e_csv(data / "e2e" / name) for name in ("trainset.csv", "devset.csv"))
    return [Pair(source, target) for source, target in train], _group(dev)


def read_commongen(data: Path) -> tuple[list[Pair], References]:
    """Three to five concepts -> a sentence that uses them."""
    train, dev = (_read_parallel(data / "commongen", split) for split in ("train", "dev"))
    return [Pair(source, target) for source, target in train], _group(dev)


def read_splits(data: Path) -> tuple[list[Pair], References]:
    """One long sentence -> two sentences that say the same."""
    train, dev = read_wikisplit(data)
    return [Pair(source, target) for source, target in train], _group(dev)


def read_wordnet(data: Path) -> tuple[list[Pair], References]:
    """`atavism (noun)` -> a definition."""
    splits = []
    for split in ("train", "dev"):
        rows = [line.split("\t") for line in read_lines(data / "wordnet_define" / f"{split}.tsv")][1:]
        splits.append([(f"{word} ({pos})", definition) for word, pos, definition in rows])
    return [Pair(source, target) for source, target in splits[0]], _group(splits[1])


def service_reader(service: str) -> Callable[[Path], tuple[list[Pair], References]]:
    """Return the reader of one dialogue service: `offer event name : Yes | offer date : March 3rd` -> an utterance."""

    def read(data: Path) -> tuple[list[Pair], References]:
        train, dev = (
            [(render(dialogue_fields(r["acts"])), r["text"]) for r in read_sgd(data, split) if r["service"] == service]
            for split in ("train", "dev")
        )
        return [Pair(source, target) for source, target in train], _group(dev)

    return read


TASKS = (
    Task("e2e", "Restaurant descriptions", "Turns a restaurant record into a description.", read_e2e, 48, 15, 100),
    Task("commongen", "Sentence from concepts", "Writes a sentence with the given words.", read_commongen, 20, 3.5, 40),
    Task("wikisplit", "Sentence splitting", "Splits a long sentence into two.", read_splits, 20, 3.5, 120),
    Task("wordnet", "Dictionary definitions", "Defines a word (in-domain: glosses were read in pretraining).",
         read_wordnet, 20, 2.5, 40),
    Task("events_1", "Event assistant", "Says what a ticket assistant's system acts mean.",
         service_reader("Events_1"), 10, 2, 80),
    Task("hotels_1", "Hotel assistant", "Says what a hotel assistant's system acts mean.",
         service_reader("Hotels_1"), 10, 2, 80),
    Task("rentalcars_1", "Rental-car assistant", "Says what a car-rental assistant's system acts mean.",
         service_reader("RentalCars_1"), 10, 2, 80),
)  # fmt: skip


def _read_e2e_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(render(re.findall(r"(\w[\w ]*)\[(.*?)\]", r["mr"])), r["ref"].strip()) for r in csv.DictReader(file)]


def _read_parallel(folder: Path, split: str) -> list[tuple[str, str]]:
    sides = (f"commongen.{split}.src_alpha.txt", f"commongen.{split}.tgt.txt")
    return list(zip(*(list(read_lines(folder / side)) for side in sides), strict=True))


def _group(rows: Iterable[tuple[str, str]]) -> References:
    grouped: References = {}
    for source, target in rows:
        grouped.setdefault(source, []).append(target)
    return grouped
