"""The seven tasks of the pocket model: their data, what a prefix for each is given to learn with, and a word on each.

Knows the data files and how a task's input is written. Knows nothing of tokens or tensors. All inputs go through the
one prompt template of `packing`.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.examples import Example, grouped, read_examples
from training.pocket.corpus import read_sgd
from training.pocket.facts import places_of, told_of, told_otherwise
from training.records import Field, dialogue_fields, render

Splits = tuple[list[Example], list[Example]]  # train, dev
Act = dict[str, Any]  # act, slot, values
Record = dict[str, Any]  # of a dialogue: service, acts, text
NUM_COPIES = 2  # with other values, of each utterance that is to be read
SWAPPED = 0.7  # of the values in them
# What services are about, where the first part of the name does not say it
TOPICS = {
    "Banks": "banking",
    "Media": "movies",
    "RentalCars": "rental cars",
    "RideSharing": "taxis",
    "Services": "appointments",
    "Travel": "sights",
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
    optimizer: str = "muon"


def published(folder: str, train: str, dev: str, format_name: str) -> Callable[[Path], Splits]:
    """Return the reader of a task whose files are in one of the trainer's own formats."""

    def read(data: Path) -> Splits:
        return read_examples(data / folder / train, format_name), read_examples(data / folder / dev, format_name)

    return read


def service(name: str) -> Callable[[Path], Splits]:
    """Return the reader of one dialogue service: `offer event name : Yes | offer date : March 3rd` -> an utterance."""
    return published("sgd_nlg", "train.jsonl.gz", "dev.jsonl", f"sgd:{name}")


def read_restaurants(data: Path) -> Splits:
    """A restaurant's record -> its description, of those that tell all of it and nothing otherwise: three in ten leave
    something out, and of the others one in twenty-four tells a field otherwise."""
    train, dev = read_e2e(data)
    places = places_of(example.inputs for example in train)

    def is_right(record: str, text: str) -> bool:
        return told_of(record, text) == record and not told_otherwise(record, text, places)

    right = [
        Example(example.inputs, tuple(text for text in example.targets if is_right(example.inputs, text)))
        for example in train
    ]
    return [example for example in right if example.targets], dev


def read_descriptions(data: Path) -> Splits:
    """A restaurant's description -> its record, E2E the other way round; of one record's in the dev set the first."""
    train, dev = read_e2e(data)
    back = list(grouped((text, told_of(example.inputs, text)) for example in train for text in example.targets))
    return back, list(grouped((example.targets[0], told_of(example.inputs, example.targets[0])) for example in dev))


def acts_of(name: str) -> Callable[[Path], Splits]:
    """Return the reader of one dialogue service the other way round: an utterance -> its acts."""
    return spoken(name, dialogue_fields)


def fields_of(name: str) -> Callable[[Path], Splits]:
    """Return the reader of one dialogue service's utterances -> the values that they say, without their acts."""
    return spoken(name, lambda acts: dialogue_fields([act for act in acts if act["values"]], with_act=False))


def spoken(name: str, to_fields: Callable[[list[Act]], list[Field]]) -> Callable[[Path], Splits]:
    """Return the reader of one dialogue service's utterances that say all their values -> their fields, where there are
    any. Each one of the training set comes again with other values, so that they are read and not remembered."""

    def read(data: Path) -> Splits:
        train, dev = (
            [record for record in read_sgd(data, split) if record["service"] == name and says_all(record)]
            for split in ("train", "dev")
        )
        rng, pool = random.Random(0), values_by_slot(train)
        copies = [with_other_values(record, pool, rng) for record in train for _ in range(NUM_COPIES)]
        return examples([*train, *filter(None, copies)]), examples(dev)

    def examples(records: Sequence[Record]) -> list[Example]:
        told = [(record["text"], to_fields(record["acts"])) for record in records]
        return list(grouped((text, render(fields)) for text, fields in told if fields))

    return read


def says_all(record: Record) -> bool:
    values = [value for act in record["acts"] for value in act["values"]]
    return all(value in ("True", "False") or value.lower() in record["text"].lower() for value in values)


def values_by_slot(records: Sequence[Record]) -> Mapping[str, Sequence[str]]:
    pool: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for act in record["acts"]:
            pool[act["slot"]] += act["values"] if len(act["values"]) == 1 else ()
    return pool


def with_other_values(record: Record, pool: Mapping[str, Sequence[str]], rng: random.Random) -> Record | None:
    """Put others of the pool in the place of values that the text says once, in acts and text alike; None where there
    is none, or the text would not say them all."""
    single = [(act["slot"], *act["values"]) for act in record["acts"] if len(act["values"]) == 1]
    swaps = {
        value: rng.choice(pool[slot])
        for slot, value in single
        if len(whole(value).findall(record["text"])) == 1 and rng.random() < SWAPPED
    }
    if not swaps:
        return None
    pattern = re.compile("|".join(whole(value).pattern for value in sorted(swaps, key=len, reverse=True)))
    acts = [{**act, "values": [swaps.get(value, value) for value in act["values"]]} for act in record["acts"]]
    swapped = {**record, "acts": acts, "text": pattern.sub(lambda match: swaps[match[0]], record["text"])}
    return swapped if says_all(swapped) else None


def whole(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def read_topics(data: Path) -> Splits:
    """An utterance of a dialogue assistant -> what it is about, and whether it offers something or wants it confirmed.
    Of the 26 services of the training set, those utterances that have at least two acts with values, and so tell what
    they are about; of the dev set every third of those that the training set does not have."""

    def read(split: str) -> list[Record]:
        return [record for record in read_sgd(data, split) if offer_or_confirm(record) and num_valued(record) >= 2]

    train, dev = read("train"), read("dev")
    services, texts = ({record[key] for record in train} for key in ("service", "text"))
    new = [record for record in dev if record["service"] in services and record["text"] not in texts]
    return read_into_topics(train), read_into_topics(new)[::3]


def read_into_topics(records: Sequence[Record]) -> list[Example]:
    return list(grouped((record["text"], topic_of(record)) for record in records))


def topic_of(record: Record) -> str:
    name = record["service"].partition("_")[0]
    return render([("topic", TOPICS.get(name, name.lower())), ("act", offer_or_confirm(record))])


def offer_or_confirm(record: Record) -> str:
    """`confirm`, `offer`, or nothing."""
    acts = {act["act"] for act in record["acts"]}
    return next((act.lower() for act in ("CONFIRM", "OFFER") if act in acts), "")


def num_valued(record: Record) -> int:
    return sum(bool(act["values"]) for act in record["acts"])


read_e2e = published("e2e", "trainset.csv", "devset.csv", "e2e")

TASKS = (
    Task("e2e", "Restaurant descriptions", "Turns a restaurant's record into a description.", read_restaurants,
         128, 12000, 100),
    Task("e2e_fields", "Restaurant records", "Reads a restaurant's description into a record.", read_descriptions,
         64, 3500, 80),
    Task("topics", "Topics", "Tells what an assistant speaks of, and whether it offers or asks to confirm.",
         read_topics, 64, 2500, 30),
    Task("events_1", "Event assistant", "Says what a ticket assistant's system acts mean.",
         service("Events_1"), 64, 1500, 80, optimizer="adamw"),
    Task("events_acts", "Event assistant's acts", "Reads what a ticket assistant says into its system acts.",
         acts_of("Events_1"), 64, 2500, 80, optimizer="adamw"),
    Task("weather_fields", "Weather records", "Reads what a weather assistant says into a record.",
         fields_of("Weather_1"), 64, 2500, 60),
    Task("homes_acts", "Housing assistant's acts", "Reads what a housing assistant says into its system acts.",
         acts_of("Homes_1"), 64, 2500, 80),
)  # fmt: skip
