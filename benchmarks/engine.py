"""What mixing tasks costs, and what batching them gains over one request after another.

GPT-2 small's shape with random weights, 32 rows, prefix 10, prompt 32, 64 new tokens, greedy, the end-of-text token
forbidden. Each figure is the median of ratios of runs that were interleaved within this one process:

- `mixed_vs_one_task_32`: requests per second of 32 tasks over those of one task repeated, through the engine;
- `vs_sequential_32`: requests per second of the 32 tasks over the same requests one after another through transformers
  with the prefix as cache (four of the 32 in each pair, in turn, since they take a second or two each).

    python -m benchmarks.engine [--pairs 9] [--dtype bfloat16] [--out FILE.json]
"""

import random
import statistics
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from batching.engine import Engine
from batching.types import Request, SamplingParams
from benchmarks.alone import generate_alone
from benchmarks.report import finish
from benchmarks.small import make_small, parse_arguments
from prefix_store.prefix import Prefix

NUM_ROWS = 32
NUM_VIRTUAL_TOKENS = 10
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
NUM_SEQUENTIAL = 4


def make_prefix(config: GPT2Config, seed: int) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    size = (config.n_layer, 2, NUM_VIRTUAL_TOKENS, config.n_head, config.n_embd // config.n_head)
    return Prefix(torch.randn(size, generator=generator), revision=str(seed), kind="prefix")


def make_requests(prefixes: list[Prefix], vocab_size: int) -> list[Request]:
    """One request for each prefix, each with a prompt of its own."""
    chooser = random.Random(0)
    params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)
    prompts = [tuple(chooser.randrange(vocab_size - 1) for _ in range(NUM_PROMPT_TOKENS)) for _ in prefixes]
    return [
        Request(str(i), "default", prompt, prefix, params)
        for i, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True))
    ]


def requests_per_second_of_engine(engine: Engine, requests: list[Request]) -> float:
    started_at = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    num_tokens = 0
    while engine.has_work:
        num_tokens += sum(len(output.new_token_ids) for output in engine.step() if hasattr(output, "new_token_ids"))
    assert num_tokens == len(requests) * NUM_NEW_TOKENS, num_tokens
    return len(requests) / (time.perf_counter() - started_at)


def requests_per_second_of_transformers(model: GPT2LMHeadModel, requests: list[Request]) -> float:
    started_at = time.perf_counter()
    for request in requests:
        assert request.prefix is not None
        past_key_values, prompt = request.prefix.past_key_values, request.prompt_token_ids
        new_token_ids = generate_alone(model, past_key_values, prompt, NUM_NEW_TOKENS, NUM_NEW_TOKENS)
        assert len(new_token_ids) == NUM_NEW_TOKENS
    return len(requests) / (time.perf_counter() - started_at)


def main() -> None:
    args = parse_arguments("Mixed tasks against one task, and against one request after another")
    small = make_small(args, NUM_ROWS)
    engine, model, config = small.engine, small.model, small.model.config
    prefixes = [make_prefix(config, seed) for seed in range(NUM_ROWS)]
    mixed = make_requests(prefixes, config.vocab_size)
    one_task = make_requests([prefixes[0]] * NUM_ROWS, config.vocab_size)

    requests_per_second_of_engine(engine, mixed)
    requests_per_second_of_transformers(model, mixed[:1])
    measured: dict[str, list[float]] = {"mixed tasks": [], "one task": [], "one after another": []}
    for pair in range(args.pairs):
        first = pair * NUM_SEQUENTIAL % NUM_ROWS
        order = ["mixed tasks", "one task"] if pair % 2 == 0 else ["one task", "mixed tasks"]
        for label in order:
            requests = mixed if label == "mixed tasks" else one_task
            measured[label].append(requests_per_second_of_engine(engine, requests))
        sequential = requests_per_second_of_transformers(model, mixed[first : first + NUM_SEQUENTIAL])
        measured["one after another"].append(sequential)

    ratios = {
        "mixed_vs_one_task_32": _ratios(measured["mixed tasks"], measured["one task"]),
        "vs_sequential_32": _ratios(measured["mixed tasks"], measured["one after another"]),
    }
    rows = {f"{label}, requests/s ({small.dtype})": numbers for label, numbers in measured.items()} | ratios
    finish("engine", rows, {name: statistics.median(numbers) for name, numbers in ratios.items()}, args.out)


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
