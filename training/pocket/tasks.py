"""The seven tasks of the pocket model: their data, what a prefix for each is given to learn with, and a word on each.

Knows the data files and how a task's input is written. Knows nothing of tokens or tensors. All inputs go through the
one prompt template of `packing`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.examples import Example, grouped, read_examples
from training.pocket.corpus import read_lines, read_wikisplit

Splits = tuple[list[Example], list[Example]]  # train, dev


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what it is called and read from, and the size and schedule of its prefix."""

    task_id: str
    title: str
    description: str
    read: Callable[[Path], Splits]
    num_virtual_tokens: int
    num_steps: int
    max_new_tokens: int
    learning_rate: float = 1e-3


def published(folder: str, train: str, dev: str, format_name: str) -> Callable[[Path], Splits]:
    """Return the reader of a task whose files are in one of the trainer's own formats."""

    def read(data: Path) -> Splits:
        return read_examples(data / folder / train, format_name), read_examples(data / folder / dev, format_name)

    return read


def service(name: str) -> Callable[[Path], Splits]:
    """Return the reader of one dialogue service: `offer event name : Yes | offer date : March 3rd` -> an utterance."""
    return published("sgd_nlg", "train.jsonl.gz", "dev.jsonl", f"sgd:{name}")


def read_splits(data: Path) -> Splits:
    """One long sentence -> two sentences that say the same."""
    train, dev = read_wikisplit(data)
    return list(grouped(train)), list(grouped(dev))


def read_wordnet(data: Path) -> Splits:
    """`atavism (noun)` -> a definition."""

    def read(name: str) -> list[Example]:
        rows = [line.split("\t") for line in read_lines(data / "wordnet_define" / name)][1:]
        return list(grouped((f"{word} ({pos})", definition) for word, pos, definition in rows))

    return read("train.tsv"), read("dev.tsv")


read_e2e = published("e2e", "trainset.csv", "devset.csv", "e2e")
read_commongen = published("commongen", "commongen.train.src_alpha.txt", "commongen.dev.src_alpha.txt", "commongen")

TASKS = (
    Task("e2e", "Restaurant descriptions", "Turns a restaurant record into a description.", read_e2e, 48, 1014, 100),
    Task("commongen", "Sentence from concepts", "Writes a sentence with the given words.", read_commongen, 20, 887, 40),
    Task("wikisplit", "Sentence splitting", "Splits a long sentence into two.", read_splits, 20, 168, 120),
    Task("wordnet", "Dictionary definitions", "Defines a word (in-domain: glosses were read in pretraining).",
         read_wordnet, 20, 461, 40),
    Task("events_1", "Event assistant", "Says what a ticket assistant's system acts mean.",
         service("Events_1"), 10, 253, 80),
    Task("hotels_1", "Hotel assistant", "Says what a hotel assistant's system acts mean.",
         service("Hotels_1"), 10, 392, 80),
    Task("rentalcars_1", "Rental-car assistant", "Says what a car-rental assistant's system acts mean.",
         service("RentalCars_1"), 10, 404, 80),
)  # fmt: skip
