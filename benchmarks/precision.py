"""What lower precision costs in quality, on the embedded tasks: float32, bfloat16 and int8 on the same inputs.

For each dtype, all in one engine, greedy, 32 rows at a time: the E2E challenge's test inputs and their BLEU with the
official settings; the mean negative log-likelihood of their first references, in nats a token; and of all embedded
tasks' examples, how many answers are float32's to the last token.

    python -m benchmarks.precision --data DATA [--inputs 200] [--out FILE.json]

`DATA` holds `e2e/testset_w_refs.csv`.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from transformers import GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.types import Request, SamplingParams, StepOutput
from benchmarks.report import finish_table
from benchmarks.served_vs_alone import MEASURED, Alone
from polyprefix.demo_burst import Ask
from polyprefix.demo_tasks import POCKET, embedded_tasks
from training.examples import Example, read_examples
from training.metrics import bleu_e2e

DTYPES = ("float32", "bfloat16", "int8")
NUM_SLOTS = 32


@dataclass(frozen=True, slots=True)
class Quality:
    answers: list[tuple[int, ...]]  # of the E2E inputs, then of all tasks' examples
    bleu: float
    nats_per_token: float


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, list[StepOutput]]:
    """What each request's steps said, by its id."""
    outputs: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add_request(request)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, StepOutput):
                outputs[output.request_id].append(output)
    return outputs


def answer(engine: Engine, alone: Alone, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
    """Greedy answers, in order."""
    requests = []
    for i, ask in enumerate(asks):
        params = SamplingParams(max_new_tokens=alone.tasks[ask.task_id].parameters["max_new_tokens"], temperature=0)
        requests.append(Request(str(i), "default", tuple(alone.prompt(ask)), alone.prefixes[ask.task_id], params))
    outputs = run(engine, requests)
    return [tuple(token for output in outputs[each.request_id] for token in output.new_token_ids) for each in requests]


def nats_per_token(engine: Engine, alone: Alone, examples: Sequence[Example]) -> float:
    """The mean over all tokens of the examples' first targets, each with the end of text."""
    requests, num_prompt_tokens = [], {}
    for i, example in enumerate(examples):
        prompt = alone.prompt(Ask(MEASURED, example.inputs))
        target = [*alone.backbone.token_ids(" " + example.targets[0]), engine.backbone.eos_token_id]
        params = SamplingParams(max_new_tokens=1, prompt_logprobs=True)
        requests.append(Request(str(i), "default", (*prompt, *target), alone.prefixes[MEASURED], params))
        num_prompt_tokens[str(i)] = len(prompt)
    logprobs = []
    for request_id, outputs in run(engine, requests).items():
        foretold = [token.logprob for output in outputs for token in output.prompt_logprobs]
        logprobs += foretold[num_prompt_tokens[request_id] - 1 :]  # the first token is foretold by nothing
    return -statistics.fmean(logprobs)


def measure(
    dtype: str, alone: Alone, model: GPT2LMHeadModel, asks: Sequence[Ask], examples: Sequence[Example]
) -> Quality:
    engine = Engine(Backbone.from_model(model, device="cpu", dtype=dtype), NUM_SLOTS)
    answers = answer(engine, alone, asks)
    decode = alone.backbone.tokenizer.decode
    texts = [decode(token_ids, skip_special_tokens=True).strip() for token_ids in answers[: len(examples)]]
    bleu = bleu_e2e(texts, [example.targets for example in examples]).score
    return Quality(answers, bleu, nats_per_token(engine, alone, examples))


def main() -> None:
    parser = argparse.ArgumentParser(description="float32, bfloat16 and int8 on the embedded tasks")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds e2e/testset_w_refs.csv")
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    tasks = embedded_tasks()
    alone, model = Alone(tasks), GPT2LMHeadModel.from_pretrained(POCKET).eval()
    examples = read_examples(args.data / "e2e" / "testset_w_refs.csv", "e2e")[: args.inputs]
    asks = [Ask(MEASURED, example.inputs) for example in examples]
    asks += [Ask(task.task_id, inputs) for task in tasks for inputs in task.examples]
    found = {dtype: measure(dtype, alone, model, asks, examples) for dtype in DTYPES}

    table = Table("dtype", "E2E BLEU", "nats a token", "answers as in float32", title="precision")
    figures: dict[str, float] = {"num_inputs": len(examples), "num_answers": len(asks)}
    for dtype, quality in found.items():
        num_same = sum(map(tuple.__eq__, quality.answers, found["float32"].answers))
        table.add_row(dtype, f"{quality.bleu:.2f}", f"{quality.nats_per_token:.4f}", f"{num_same} of {len(asks)}")
        figures[f"bleu_{dtype}"] = quality.bleu
        figures[f"nats_per_token_{dtype}"] = quality.nats_per_token
        figures[f"same_as_float32_{dtype}"] = num_same / len(asks)
    finish_table("precision", table, figures, args.out)


if __name__ == "__main__":
    main()
