"""Whether two separately tuned prefixes, one behind the other, do anything useful: the embedded tasks, two by two.

For each pair the second task's dev inputs are answered greedily under its own prefix, under the first's, under both one
behind the other, and by a mix of both, half and half; and so with a fixed text, compiled, in the first one's place.
"BLEU" is against the references, "likeness" the BLEU against the answers under the first alone. There is one order
only: keys bring their positions with them, so attention sees the same either way.

    python -m benchmarks.concatenation --data DATA [--num 100] [--seed 0] [--out FILE.json]

DATA is the folder of training/pocket/README.md.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.types import Compile, Compiled, MixedPrefix, Request, SamplingParams
from benchmarks.report import finish_table
from polyprefix.demo_tasks import POCKET
from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from training.examples import Example
from training.metrics import bleu_e2e
from training.pocket.packing import PROMPT_TEMPLATE
from training.pocket.tasks import TASKS

PAIRS = [("e2e", "events_1"), ("homes_acts", "weather_fields"), ("events_acts", "topics"), ("topics", "e2e")]
STYLE = "Answer politely, in one short and friendly sentence.\n"
MAX_NEW_TOKENS = 64
NUM_SLOTS = 32

Way = Prefix | tuple[MixedPrefix, ...]  # what the rows of one run have before their prompts


class Lab:
    """The embedded model in an engine, and its tasks."""

    def __init__(self, data: Path, num: int, seed: int) -> None:
        """Of each task `num` dev inputs are drawn by `seed`; of a smaller dev set, all."""
        backbone = Backbone.from_model(GPT2LMHeadModel.from_pretrained(POCKET).eval())
        self._engine = Engine(backbone, NUM_SLOTS)
        self._tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(POCKET)
        self._ids = count()
        self.prefixes: dict[str, Prefix] = {}
        self.inputs: dict[str, list[Example]] = {}
        for task in TASKS:
            prefix = parse((POCKET / "prefixes" / f"{task.task_id}.safetensors").read_bytes(), backbone.shape, None)
            assert isinstance(prefix, Prefix), task.task_id
            self.prefixes[task.task_id] = prefix
            _, dev = task.read(data)
            self.inputs[task.task_id] = random.Random(seed).sample(dev, min(num, len(dev)))

    def compile(self, text: str) -> Prefix:
        self._engine.add_request(Compile("text", "lab", tuple(self._tokenizer.encode(text))))
        (compiled,) = self._engine.step()
        assert isinstance(compiled, Compiled), "one step compiles a short text"
        assert compiled.past_key_values is not None, compiled.error
        return Prefix(compiled.past_key_values, revision="text", kind="text")

    def answer(self, way: Way, task_id: str) -> list[str]:
        """The task's inputs, greedily."""
        said: dict[str, list[int]] = {}
        for example in self.inputs[task_id]:
            prompt = tuple(self._tokenizer.encode(PROMPT_TEMPLATE.replace("{inputs}", example.inputs)))
            request = Request(f"{next(self._ids)}", "lab", prompt, sampling_params=SamplingParams(MAX_NEW_TOKENS))
            ways: dict[str, Any] = {"prefix": way} if isinstance(way, Prefix) else {"mix": way}
            self._engine.add_request(replace(request, **ways))
            said[request.request_id] = []
        while self._engine.has_work:
            for output in self._engine.step():
                assert not isinstance(output, Compiled)
                assert output.error is None, output.error
                said[output.request_id] += output.new_token_ids
        return [self._tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said.values()]


def concatenated(first: Prefix, second: Prefix) -> Prefix:
    """`first` at the first positions, `second` behind it."""
    entries = torch.cat((first.past_key_values, second.past_key_values), dim=2)
    return Prefix(entries, revision=f"{first.revision}+{second.revision}", kind="prefix")


def compared(lab: Lab, first: Prefix, second: str) -> dict[str, float]:
    """The scores of the answers to task `second`, with `first` put to it in each way."""
    own = lab.prefixes[second]
    ways: dict[str, Way] = {
        "own": own,
        "first": first,
        "both": concatenated(first, own),
        "mix": (MixedPrefix(first, 1.0), MixedPrefix(own, 1.0)),
    }
    answers = {name: lab.answer(way, second) for name, way in ways.items()}
    references = [example.targets for example in lab.inputs[second]]
    of_first = [(text,) for text in answers["first"]]
    bleu = {f"BLEU {name}": bleu_e2e(texts, references).score for name, texts in answers.items()}
    likeness = {f"likeness {name}": bleu_e2e(answers[name], of_first).score for name in ("own", "both", "mix")}
    return {**bleu, **likeness}


def measure(lab: Lab) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The first's name, the second's, and the figures: each pair in both roles, and the fixed text before each task."""
    for one, other in PAIRS:
        for first, second in ((one, other), (other, one)):
            yield first, second, compared(lab, lab.prefixes[first], second)
    text = lab.compile(STYLE)
    for second in dict.fromkeys(task_id for pair in PAIRS for task_id in pair):
        yield "a text", second, compared(lab, text, second)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two tuned prefixes, one behind the other")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100, help="dev inputs of each task")
    parser.add_argument("--seed", type=int, default=0, help="of their draw")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows = list(measure(Lab(args.data, args.num, args.seed)))
    names = list(rows[0][2])
    table = Table("first", "second", *names, title="concatenation")
    for first, second, figures in rows:
        table.add_row(first, second, *(f"{figures[name]:.3g}" for name in names))
    flat = {f"{first} + {second}: {name}": figures[name] for first, second, figures in rows for name in names}
    finish_table("concatenation", table, flat, args.out)


if __name__ == "__main__":
    main()
