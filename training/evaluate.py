"""Runs test sets through served tasks and scores the answers.

Knows our client and the metrics. Knows nothing of weights: what is scored is what tenants get. Several tasks are asked
at once, their inputs mixed, so their rows share the server's steps.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import aclosing
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
    """Ask every input once, at most `concurrency` at a time, the tasks by turns. A server that has no room for one now
    is asked again when it says; every other error of the client's is raised."""
    turns = by_turns(test_sets)
    tasks = [test_sets[which].task_id for which, _ in turns]
    inputs = [test_sets[which].examples[index].inputs for which, index in turns]
    texts: list[list[str]] = [[] for _ in test_sets]
    versions: list[set[int | None]] = [set() for _ in test_sets]
    async with aclosing(client.map(tasks, inputs, concurrency=concurrency, **parameters)) as arriving:
        answers = [answer async for answer in arriving]
    for (which, _), answer in zip(turns, answers, strict=True):
        texts[which].append(answer.generated_text.strip())
        versions[which].add(answer.version)
    return [
        Answers(tuple(found), next(iter(seen)) if len(seen) == 1 else None)
        for found, seen in zip(texts, versions, strict=True)
    ]


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
