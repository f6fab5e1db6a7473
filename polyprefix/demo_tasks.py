"""The demo's tasks: the embedded model's own, or a few plain texts that any GPT-2 can follow.

Knows the files in pocket/ and how tasks are put on a server. Knows nothing of what is then asked.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.client import Client

POCKET = Path(__file__).parent / "pocket"


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One task, some inputs to try it with, and what makes its prefix: a file of ours, or a text to compile."""

    task_id: str
    description: str
    prefix: Path | str
    prompt_template: str
    parameters: Mapping[str, Any]
    examples: Sequence[str]


def embedded_tasks() -> list[DemoTask]:
    """What ships beside the embedded model; the examples come from the tasks' dev sets."""
    described = json.loads((POCKET / "tasks.json").read_text(encoding="utf-8"))
    return [
        DemoTask(
            task_id=task["task_id"],
            description=task["description"],
            prefix=POCKET / "prefixes" / f"{task['task_id']}.safetensors",
            prompt_template=task["prompt_template"],
            parameters=task["parameters"],
            examples=task["examples"],
        )
        for task in described
    ]


def worked_examples(
    task_id: str, description: str, pairs: Iterable[tuple[str, str]], examples: Sequence[str]
) -> DemoTask:
    """A task told by a few lines `question -> answer`; the answer ends with its line."""
    return DemoTask(
        task_id=task_id,
        description=description,
        prefix="".join(f"{question} -> {answer}\n" for question, answer in pairs),
        prompt_template="{inputs} ->",
        parameters={"max_new_tokens": 12, "stop": ["\n"]},
        examples=examples,
    )


PLAIN_TEXT_TASKS = [
    worked_examples(
        "opposites",
        "Opposites",
        [("hot", "cold"), ("big", "small"), ("early", "late"), ("open", "closed")],
        ["wet", "light", "happy", "fast"],
    ),
    worked_examples(
        "capitals",
        "Capital cities",
        [("France", "Paris"), ("Italy", "Rome"), ("Egypt", "Cairo"), ("Norway", "Oslo")],
        ["Spain", "Japan", "Russia", "Greece"],
    ),
    worked_examples(
        "plurals",
        "Plural forms",
        [("one cat", "two cats"), ("one city", "two cities"), ("one mouse", "two mice")],
        ["one dog", "one house", "one child", "one berry"],
    ),
    worked_examples(
        "past",
        "Past tense",
        [("I walk home", "I walked home"), ("I see it", "I saw it"), ("I go there", "I went there")],
        ["I play chess", "I take it", "I write a book", "I run away"],
    ),
    worked_examples(
        "sentiment",
        "Sentiment of a review",
        [("I loved every minute", "good"), ("A waste of time", "bad"), ("Truly wonderful", "good"), ("Dull", "bad")],
        ["The best film this year", "I fell asleep", "Charming and funny", "Badly acted and far too long"],
    ),
    worked_examples(
        "kinds",
        "What kind of thing",
        [("apple", "fruit"), ("oak", "tree"), ("salmon", "fish"), ("violin", "instrument")],
        ["banana", "trout", "piano", "pine"],
    ),
    worked_examples(
        "next",
        "What comes next",
        [("one two three", "four"), ("a b c", "d"), ("Monday Tuesday", "Wednesday"), ("10 20 30", "40")],
        ["five six seven", "x y", "January February", "2 4 6"],
    ),
]


def publish(client: Client, tasks: Iterable[DemoTask]) -> None:
    """Put the tasks on the server, as anybody would: one upload and one PATCH each."""
    for task in tasks:
        if isinstance(task.prefix, Path):
            client.upload(task.task_id, task.prefix)
        else:
            client.upload_text(task.task_id, task.prefix)
        client.set_config(
            task.task_id,
            description=task.description,
            prompt_template=task.prompt_template,
            parameters=dict(task.parameters),
        )
