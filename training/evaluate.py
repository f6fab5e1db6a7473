"""Runs test sets through served tasks and scores the answers.

Knows our client and the metrics. Knows nothing of weights: what is scored is what tenants get. Several tasks are asked
at once, their inputs mixed, so their rows share the server's steps.
"""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from clients.client import AsyncClient
from training.coco import coco_scores
from training.examples import Example
from training.metrics import bleu_e2e, bleu_webnlg, nist, rouge_l, tokens_13a

SCORINGS = {"e2e": bleu_e2e, "webnlg": bleu_webnlg}
SCORING_OF_FORMAT = {"webnlg": "webnlg", "dart": "webnlg"}  # every other format is scored as E2E


@dataclass(frozen=True, slots=True)
class TestSet:
    """A served task and what it is to be asked. `scoring` is one of `SCORINGS`."""

    __test__ = False  # pytest looks at names

    task_id: str
    examples: Sequence[Example]
    scoring: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What a task answered, in the order of its examples, and the version that answered (None: several did)."""

    texts: tuple[str, ...]
    version: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """One task's scores. `extra` holds METEOR, CIDEr and coco-caption's ROUGE-L where they were asked for."""

    task_id: str
    version: int | None
    num_inputs: int
    num_references: int
    bleu: float
    bleu_signature: str
    scoring: str
    rouge_l: float
    nist: float
    extra: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        extra: dict[str, float] = fields.pop("extra")
        return {**fields, **extra}


async def ask(
    client: AsyncClient, test_sets: Sequence[TestSet], concurrency: int, parameters: Mapping[str, Any]
) -> list[Answers]:
    """Ask every input once, at most `concurrency` at a time, the tasks by turns. Raises the client's errors."""
    free = asyncio.Semaphore(concurrency)
    texts: list[list[str]] = [[""] * len(test_set.examples) for test_set in test_sets]
    versions: list[set[int | None]] = [set() for _ in test_sets]

    async def ask_one(which: int, index: int) -> None:
        test_set = test_sets[which]
        async with free:
            answer = await client.generate(test_set.task_id, test_set.examples[index].inputs, **parameters)
        texts[which][index] = answer.generated_text.strip()
        versions[which].add(answer.version)

    await all_or_first_error([ask_one(which, index) for which, index in by_turns(test_sets)])
    return [
        Answers(tuple(found), next(iter(seen)) if len(seen) == 1 else None)
        for found, seen in zip(texts, versions, strict=True)
    ]


async def all_or_first_error(calls: Sequence[Any]) -> None:
    """Run all; the first that fails ends the others, and its own error is raised, not a group of them."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def by_turns(test_sets: Sequence[TestSet]) -> list[tuple[int, int]]:
    """(test set, index of its example): one of each task, then the next of each."""
    columns = [[(which, index) for index in range(len(test_set.examples))] for which, test_set in enumerate(test_sets)]
    return [place for turn in zip_longest(*columns) for place in turn if place is not None]


def score(test_set: TestSet, answers: Answers, with_coco: bool = False) -> Report:
    """Raises `CocoUnavailable` where `with_coco` asks for what is not installed."""
    references = [example.targets for example in test_set.examples]
    answer_tokens = [tokens_13a(text) for text in answers.texts]
    reference_tokens = [[tokens_13a(text) for text in texts] for texts in references]
    bleu = SCORINGS[test_set.scoring](answers.texts, references)
    return Report(
        task_id=test_set.task_id,
        version=answers.version,
        num_inputs=len(references),
        num_references=sum(map(len, references)),
        bleu=bleu.score,
        bleu_signature=bleu.signature,
        scoring=test_set.scoring,
        rouge_l=rouge_l(answer_tokens, reference_tokens),
        nist=nist(answer_tokens, reference_tokens),
        extra=coco_scores(answers.texts, references) if with_coco else {},
    )
