"""The seven tasks of the pocket model: their data, what a prefix for each is given to learn with, and a word on each.

Knows the data files and how a task's input is written. Knows nothing of tokens or tensors. All inputs go through the
one prompt template of `packing`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.examples import Example, grouped, read_examples
from training.pocket.corpus import read_sgd, read_wikisplit
from training.records import dialogue_fields, render

Splits = tuple[list[Example], list[Example]]  # train, dev
# What a description has in it that tells of a field in words of its own; any other field it tells by its value
HINTS = {
    "priceRange": "pric|cheap|expensive|£|cost|afford|budget|moderate",
    "customer rating": "rat|star|out of|review|custom",
    "familyFriendly": "famil|kid|child|adult",
    "area": "river|cent|city",
}


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
    learning_rate: float = 3e-2


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


def read_restaurants(data: Path) -> Splits:
    """A restaurant's record -> its description, of those that tell all of it: three in ten leave something out."""
    train, dev = read_e2e(data)
    whole = [
        Example(
            example.inputs, tuple(text for text in example.targets if told_of(example.inputs, text) == example.inputs)
        )
        for example in train
    ]
    return [example for example in whole if example.targets], dev


def read_descriptions(data: Path) -> Splits:
    """A restaurant's description -> its record, E2E the other way round; of one record's in the dev set the first."""
    train, dev = read_e2e(data)
    back = list(grouped((text, told_of(example.inputs, text)) for example in train for text in example.targets))
    return back, list(grouped((example.targets[0], told_of(example.inputs, example.targets[0])) for example in dev))


def read_utterances(data: Path) -> Splits:
    """What a dialogue assistant of any of 26 services says -> its acts, where it says all their values; of the dev set
    every tenth."""

    def read(split: str) -> list[Example]:
        records = [record for record in read_sgd(data, split) if says_all(record)]
        return list(grouped((record["text"], render(dialogue_fields(record["acts"]))) for record in records))

    return read("train"), read("dev")[::10]


def says_all(record: dict[str, Any]) -> bool:
    values = [value for act in record["acts"] for value in act["values"]]
    return all(value in ("True", "False") or value.lower() in record["text"].lower() for value in values)


def told_of(record: str, text: str) -> str:
    """The fields of a record that its description tells: E2E's leave out one in ten."""
    said = text.lower().replace("-", " ")
    fields = [field.split(" : ") for field in record.split(" | ")]
    told = [(key, value) for key, value in fields if re.search(HINTS.get(key) or re.escape(value.lower()), said)]
    return render(told)


read_e2e = published("e2e", "trainset.csv", "devset.csv", "e2e")

TASKS = (
    Task("e2e", "Restaurant descriptions", "Turns a restaurant's record into a description.", read_restaurants,
         128, 6000, 100),
    Task("e2e_fields", "Restaurant records", "Reads a restaurant's description into a record.", read_descriptions,
         64, 3500, 80),
    Task("wikisplit", "Sentence splitting", "Splits a long sentence into two.", read_splits, 32, 1500, 120, 1e-2),
    Task("sgd_acts", "Dialogue acts", "Reads what an assistant says into dialogue acts.", read_utterances,
         64, 3500, 80),
    Task("events_1", "Event assistant", "Says what a ticket assistant's system acts mean.",
         service("Events_1"), 64, 1500, 80),
    Task("hotels_1", "Hotel assistant", "Says what a hotel assistant's system acts mean.",
         service("Hotels_1"), 64, 1500, 80),
    Task("rentalcars_1", "Rental-car assistant", "Says what a car-rental assistant's system acts mean.",
         service("RentalCars_1"), 64, 1500, 80),
)  # fmt: skip
