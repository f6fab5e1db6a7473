"""Requests of many tasks, sent at once and one by one, and what their steps say about who shared a forward pass.

Knows the async client and step numbers. Knows nothing of terminals.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from clients.client import AsyncClient, Client
from clients.results import Details, Generation
from polyprefix.demo_tasks import DemoTask


@dataclass(frozen=True, slots=True)
class Ask:
    """One input for one task."""

    task_id: str
    inputs: str


@dataclass(frozen=True, slots=True)
class Row:
    """One request with its answer: a row of the batch. `first_step` and `last_step` both held it."""

    task_id: str
    inputs: str
    answer: str
    num_tokens: int
    first_step: int
    last_step: int

    @property
    def steps(self) -> range:
        return range(self.first_step, self.last_step + 1)


@dataclass(frozen=True, slots=True)
class Sharing:
    """What one step held."""

    step: int
    num_rows: int
    num_tasks: int


def mixed(tasks: Sequence[DemoTask], num_examples: int) -> list[Ask]:
    """The tasks' first examples, one task after the other, as strangers would send them."""
    rounds = zip(*(task.examples[:num_examples] for task in tasks), strict=True)
    return [Ask(task.task_id, inputs) for turn in rounds for task, inputs in zip(tasks, turn, strict=True)]


async def ask_at_once(url: str, asks: Iterable[Ask]) -> list[Row]:
    """All of them in flight together. Greedy, so that each has one right answer."""
    async with AsyncClient(url) as client:
        answers = (client.generate(ask.task_id, ask.inputs, temperature=0, details=True) for ask in asks)
        return [row_of(ask, answer) for ask, answer in zip(asks, await asyncio.gather(*answers), strict=True)]


def ask_one_by_one(client: Client, asks: Iterable[Ask]) -> Iterator[Row]:
    """Each alone: the next goes out when the last has its answer."""
    for ask in asks:
        yield row_of(ask, client.generate(ask.task_id, ask.inputs, temperature=0, details=True))


def row_of(ask: Ask, answer: Generation) -> Row:
    details = answer.details
    assert isinstance(details, Details), "details were asked for"
    assert details.steps is not None, "our server tells a row's steps"
    return Row(ask.task_id, ask.inputs, answer.generated_text, details.generated_tokens, *details.steps)


def sharing(rows: Iterable[Row]) -> list[Sharing]:
    """For each step, how many rows of how many tasks it held."""
    held: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        for step in row.steps:
            held[step].append(row.task_id)
    return [Sharing(step, len(task_ids), len(set(task_ids))) for step, task_ids in sorted(held.items())]


def steps_of(rows: Iterable[Row]) -> range:
    """From the first step that held one of the rows to the last."""
    numbers = list(chain.from_iterable((row.first_step, row.last_step) for row in rows))
    return range(min(numbers), max(numbers) + 1)
