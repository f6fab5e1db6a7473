"""Whether a task that is served in mixed batches answers as it does alone: the same tokens, and so the same BLEU.

The E2E challenge's test inputs go through a real server on the embedded model, in float32, greedy, many in flight,
every other request one of another embedded task. Each is then answered alone by transformers, with the same prefix as
its cache. Where the tokens differ, the first difference is printed with the two tokens' logits as transformers has them
there: a difference of the order of float32's rounding is a tie that the order of additions decides.

    python -m benchmarks.served_vs_alone --data DATA [--inputs 630] [--concurrency 32] [--out FILE.json]

`DATA` holds `e2e/testset_w_refs.csv`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path

from rich.progress import track
from rich.table import Table

from benchmarks.alone import generate_alone, next_logits
from benchmarks.embedded_server import embedded_server
from benchmarks.report import finish_table
from clients.results import Details
from polyprefix.demo import num_mixed_steps
from polyprefix.demo_burst import Ask
from polyprefix.demo_tasks import POCKET, DemoTask, embedded_tasks
from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from training.backbone import FrozenBackbone, load_backbone
from training.examples import Example, read_examples
from training.metrics import bleu_e2e
from training.settings import PLACE

MEASURED = "e2e"


@dataclass(frozen=True, slots=True)
class Answer:
    """New tokens, `<|endoftext|>` included, and their text."""

    token_ids: tuple[int, ...]
    text: str


class Alone:
    """The embedded model as transformers runs it, each task with its prefix."""

    def __init__(self, tasks: Sequence[DemoTask]) -> None:
        self.backbone: FrozenBackbone = load_backbone(POCKET, precision="float32")
        self.tasks = {task.task_id: task for task in tasks}
        self.prefixes = {task.task_id: self._read(task) for task in tasks}

    def _read(self, task: DemoTask) -> Prefix:
        assert isinstance(task.prefix, Path)
        prefix = parse(task.prefix.read_bytes(), self.backbone.shape, self.backbone.fingerprint)
        assert isinstance(prefix, Prefix)
        return prefix

    def prompt(self, ask: Ask) -> list[int]:
        return self.backbone.token_ids(self.tasks[ask.task_id].prompt_template.replace(PLACE, ask.inputs))

    def answer(self, ask: Ask) -> Answer:
        past_key_values = self.prefixes[ask.task_id].past_key_values
        max_new_tokens = self.tasks[ask.task_id].parameters["max_new_tokens"]
        token_ids = generate_alone(self.backbone.model, past_key_values, self.prompt(ask), max_new_tokens)
        text = self.backbone.tokenizer.decode(token_ids, skip_special_tokens=True)
        return Answer(tuple(token_ids), text.strip())

    def told_difference(self, ask: Ask, served: Answer, alone: Answer) -> str:
        """Where two answers part, and how far apart the logits of the two tokens are there."""
        both = zip(served.token_ids, alone.token_ids, strict=False)
        place = next((i for i, (one, other) in enumerate(both) if one != other), None)
        if place is None:
            return f"{ask.task_id} {ask.inputs!r}: {len(served.token_ids)} tokens served, {len(alone.token_ids)} alone"
        prefix, text = self.prefixes[ask.task_id], [*self.prompt(ask), *alone.token_ids[:place]]
        logits = next_logits(self.backbone.model, prefix.past_key_values, text)
        one, other = served.token_ids[place], alone.token_ids[place]
        return (
            f"{ask.task_id} {ask.inputs!r}: new token {place} is {one} served, {other} alone; "
            f"logits {logits[one]:.7f} and {logits[other]:.7f}"
        )


def mixed_with_others(examples: Sequence[Example], tasks: Sequence[DemoTask]) -> list[Ask]:
    """The measured task's inputs, after each one an example of another task, by turns and over again."""
    others = [task for task in tasks if task.task_id != MEASURED]
    rounds = zip(*(task.examples for task in others), strict=True)
    asks = [Ask(task.task_id, inputs) for turn in rounds for task, inputs in zip(others, turn, strict=True)]
    pairs = zip((Ask(MEASURED, example.inputs) for example in examples), cycle(asks), strict=False)
    return list(chain.from_iterable(pairs))


def serve(asks: Sequence[Ask], concurrency: int) -> tuple[list[Answer], int]:
    """The answers, in order, and how many of the server's steps held rows of several tasks."""
    with embedded_server() as client:
        before = num_mixed_steps(client)
        generations = list(
            client.map(
                [ask.task_id for ask in asks],
                [ask.inputs for ask in asks],
                concurrency=concurrency,
                temperature=0,
                details=True,
            )
        )
        num_mixed = num_mixed_steps(client) - before
    answers = []
    for generation in generations:
        assert isinstance(generation.details, Details), "details were asked for"
        token_ids = tuple(token.id for token in generation.details.tokens)
        answers.append(Answer(token_ids, generation.generated_text.strip()))
    return answers, num_mixed


def main() -> None:
    parser = argparse.ArgumentParser(description="Served in mixed batches against alone through transformers")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/testset_w_refs.csv")
    parser.add_argument("--inputs", type=int, help="only so many test inputs")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    tasks = embedded_tasks()
    examples = read_examples(args.data / "e2e" / "testset_w_refs.csv", "e2e")[: args.inputs]
    asks = mixed_with_others(examples, tasks)
    served, num_mixed = serve(asks, args.concurrency)
    alone_of = Alone(tasks)
    alone_once = {ask: alone_of.answer(ask) for ask in track(dict.fromkeys(asks), "each alone")}
    alone = [alone_once[ask] for ask in asks]

    triples = list(zip(asks, served, alone, strict=True))
    for ask, one, other in triples:
        if one.token_ids != other.token_ids:
            print(alone_of.told_difference(ask, one, other))
    table = Table("task", "requests", "the same tokens", title="served in mixed batches, and alone")
    for task in tasks:
        same = [one.token_ids == other.token_ids for ask, one, other in triples if ask.task_id == task.task_id]
        table.add_row(task.task_id, str(len(same)), str(sum(same)))
    measured = [(one, other) for ask, one, other in triples if ask.task_id == MEASURED]
    references = [example.targets for example in examples]
    figures = {
        "served_vs_alone_equal": sum(one.token_ids == other.token_ids for one, other in measured) / len(measured),
        "num_inputs": len(measured),
        "bleu_served": bleu_e2e([one.text for one, _ in measured], references).score,
        "bleu_alone": bleu_e2e([other.text for _, other in measured], references).score,
        "num_mixed_steps": num_mixed,
    }
    finish_table("served_vs_alone", table, figures, args.out)


if __name__ == "__main__":
    main()
