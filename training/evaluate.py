"""Runs test sets through served tasks and scores the answers.

Knows our client and the metrics. Knows nothing of weights: what is scored is what tenants get. Several tasks are asked
at once, their inputs mixed, so their rows share the server's steps.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from clients.client import AsyncClient
from clients.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InternalError,
    PolyprefixError,
    TooLarge,
    ValidationFailed,
)
from clients.results import Generation
from training.coco import coco_scores
from training.examples import Example
from training.metrics import bleu_e2e, bleu_webnlg, nist, rouge_l, tokens_13a

SCORINGS = {"e2e": bleu_e2e, "webnlg": bleu_webnlg}
# One input's own trouble: too long for the context, a row that failed, one that took too long
FAILURES_OF_ONE = (ValidationFailed, TooLarge, GenerationFailed, InternalError, DeadlineExceeded)
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
    """What a task answered, in the order of its examples, and the version that answered (None: several did).

    `num_cut` answers ended where `max_new_tokens` did. `failures` are the server's words by the example's place; its
    text is empty."""

    texts: tuple[str, ...]
    version: int | None
    num_cut: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """One task's scores. `extra` holds METEOR, CIDEr and coco-caption's ROUGE-L where they were asked for. An input
    that failed counts as an empty answer."""

    task_id: str
    version: int | None
    num_inputs: int
    num_references: int
    num_cut: int
    num_failed: int
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
    is asked again when it says. What fails for one input is kept; any other error of the client's is raised."""
    turns = by_turns(test_sets)
    tasks = [test_sets[which].task_id for which, _ in turns]
    inputs = [test_sets[which].examples[index].inputs for which, index in turns]
    outcomes: list[list[Generation | PolyprefixError]] = [[] for _ in test_sets]
    places = iter(turns)
    # details tell why an answer ended
    arriving = client.try_map(tasks, inputs, concurrency=concurrency, details=True, **parameters)
    async with aclosing(arriving):
        async for outcome in arriving:
            if isinstance(outcome, PolyprefixError) and not isinstance(outcome, FAILURES_OF_ONE):
                raise outcome
            which, _ = next(places)
            outcomes[which].append(outcome)
    return [answers_of(found) for found in outcomes]


def answers_of(outcomes: Sequence[Generation | PolyprefixError]) -> Answers:
    """One task's. Raises the first error where there is no answer at all."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Generation)]
    failures = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, PolyprefixError)}
    if failures and not done:
        raise failures[0]
    versions = {answer.version for answer in done}
    return Answers(
        texts=tuple(outcome.generated_text.strip() if isinstance(outcome, Generation) else "" for outcome in outcomes),
        version=versions.pop() if len(versions) == 1 else None,
        num_cut=sum(answer.details is not None and answer.details.finish_reason == "length" for answer in done),
        failures={place: str(error) for place, error in failures.items()},
    )


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
        num_cut=answers.num_cut,
        num_failed=len(answers.failures),
        bleu=bleu.score,
        bleu_signature=bleu.signature,
        scoring=test_set.scoring,
        rouge_l=rouge_l(answer_tokens, reference_tokens),
        nist=nist(answer_tokens, reference_tokens),
        extra=coco_scores(answers.texts, references) if with_coco else {},
    )
