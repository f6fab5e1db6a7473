"""What a step costs beside its bare matrix products, and what mixing tasks, sampling and fixed shapes cost.

GPT-2 small's shape with random weights, prefix 10, prompt 32, 64 new tokens, greedy unless said, the end-of-text token
forbidden. Each figure is the median of ratios of what was interleaved within this one process.

Step by step, each decode step beside the products of as many rows (all blocks' and the head's, `benchmarks.products`);
all of a row's positions but its last are its prefix, so that all rows decode from the first step on:

- `decode_vs_matmul_{1,8,32,64}`: the seconds of torch's products, in the step's dtype or what is beside int8, over the
  step's, at positions 42 to 105;
- `decode_vs_matmul_32_context_512`: the same about position 512, with one plain read of the same cache added to the
  products;
- `products_share_{1,8,32,64}`: the seconds of the engine's own products over the step's: what is left is its overhead.

Run by run, 32 rows unless said, requests per second over those of 32 greedy rows of 32 tasks:

- `mixed_vs_one_task_{32,64}`: 32 or 64 tasks over one task repeated;
- `sampled_vs_greedy_32`: rows that all sample, with top-k, top-p and a penalty;
- `deterministic_vs_default`: in the deterministic mode, which only CPUs have;
- `graphs_vs_ordinary_32`: with captured decode steps over without, on CUDA;
- `vs_sequential_32`: the 32 tasks over the same requests one after another through transformers with the prefix as
  cache (four of the 32 in each pair, in turn, since they take a second or two each).

    python -m benchmarks.engine [--pairs 9] [--dtype bfloat16] [--out FILE.json]
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.types import Request, SamplingParams
from benchmarks.alone import generate_alone
from benchmarks.arguments import make_parser
from benchmarks.products import Products
from benchmarks.report import finish
from benchmarks.small import MAX_MODEL_LEN, Small, make_small, seconds_of
from prefix_store.prefix import Prefix

NUM_ROWS = 32
MAX_ROWS = 64
NUM_VIRTUAL_TOKENS = 10
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
NUM_SEQUENTIAL = 4
SHORT, LONG = 41, 479  # positions before the prompt's only token, where steps are measured
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


def make_prefix(config: GPT2Config, seed: int, num_virtual_tokens: int = NUM_VIRTUAL_TOKENS) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    size = (config.n_layer, 2, num_virtual_tokens, config.n_head, config.n_embd // config.n_head)
    return Prefix(torch.randn(size, generator=generator), revision=str(seed), kind="prefix")


def make_requests(
    prefixes: list[Prefix], vocab_size: int, num_prompt_tokens: int = NUM_PROMPT_TOKENS, **how: Any
) -> list[Request]:
    """One request for each prefix, each with a prompt and a seed of its own."""
    chooser = random.Random(0)
    params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS, **how)
    prompts = [tuple(chooser.randrange(vocab_size - 1) for _ in range(num_prompt_tokens)) for _ in prefixes]
    return [
        Request(str(i), "default", prompt, prefix, replace(params, seed=i))
        for i, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True))
    ]


def beside_steps(engine: Engine, requests: list[Request], *others: Callable[[int], float]) -> list[list[float]]:
    """For each of `others`, and each step in which all rows decode, its seconds for as many rows over the step's."""
    for request in requests:
        engine.add_request(request)
    ratios: list[list[float]] = [[] for _ in others]
    while engine.has_work:
        started_at = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - started_at
        if engine.last_step is not None and engine.last_step.num_decode_tokens == len(requests):
            for other, found in zip(others, ratios, strict=True):
                found.append(other(len(requests)) / seconds)
    return ratios


def requests_per_second_of_engine(engine: Engine, requests: list[Request]) -> float:
    return len(requests) / seconds_of(engine, requests)


def requests_per_second_of_transformers(model: GPT2LMHeadModel, requests: list[Request]) -> float:
    started_at = time.perf_counter()
    for request in requests:
        assert request.prefix is not None
        past_key_values, prompt = request.prefix.past_key_values, request.prompt_token_ids
        new_token_ids = generate_alone(model, past_key_values, prompt, NUM_NEW_TOKENS, NUM_NEW_TOKENS)
        assert len(new_token_ids) == NUM_NEW_TOKENS
    return len(requests) / (time.perf_counter() - started_at)


def interleaved(runs: dict[str, Callable[[], float]], num_pairs: int) -> dict[str, list[float]]:
    """Each run once for warmth, then all of them in turns, every other time backwards."""
    for run in runs.values():
        run()
    measured: dict[str, list[float]] = {label: [] for label in runs}
    for pair in range(num_pairs):
        for label in list(runs) if pair % 2 == 0 else reversed(runs):
            measured[label].append(runs[label]())
    return measured


def of_steps(small: Small) -> dict[str, list[float]]:
    """The ratios of decode steps, by figure."""
    config, products = small.model.config, Products(small.model, is_int8=small.dtype == "int8")
    short, long = (
        make_requests([make_prefix(config, seed, length) for seed in range(num_rows)], config.vocab_size, 1)
        for length, num_rows in ((SHORT, MAX_ROWS), (LONG, NUM_ROWS))
    )
    ratios: dict[str, list[float]] = {}
    for num_rows in (1, 8, NUM_ROWS, MAX_ROWS):
        beside_steps(small.engine, short[:num_rows], products.seconds, products.own_seconds)  # for warmth
        found = beside_steps(small.engine, short[:num_rows], products.seconds, products.own_seconds)
        ratios[f"decode_vs_matmul_{num_rows}"], ratios[f"products_share_{num_rows}"] = found

    engine = Engine(small.engine.backbone, NUM_ROWS, LONG + 1 + NUM_NEW_TOKENS)
    same_bytes = torch.zeros_like(engine.cache.keys[..., :512, :])  # of keys; the values are as many

    def products_and_read(num_rows: int) -> float:
        seconds = products.seconds(num_rows)
        started_at = time.perf_counter()
        same_bytes.sum().item()  # a GPU would be asked and not waited for
        same_bytes.sum().item()
        return seconds + time.perf_counter() - started_at

    (ratios["decode_vs_matmul_32_context_512"],) = beside_steps(engine, long, products_and_read)
    return ratios


def main() -> None:
    parser = make_parser("A step against its products; mixed tasks, sampling and fixed shapes against plain rows")
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    small = make_small(args, MAX_ROWS)
    engine, model, vocab_size = small.engine, small.model, small.model.config.vocab_size
    prefixes = [make_prefix(model.config, seed) for seed in range(MAX_ROWS)]
    mixed, one_task = make_requests(prefixes, vocab_size), make_requests(prefixes[:1] * MAX_ROWS, vocab_size)
    sampled = make_requests(prefixes[:NUM_ROWS], vocab_size, **SAMPLED)
    backbone = engine.backbone
    if backbone.device.type == "cuda":
        variant, other = "ordinary steps", Engine(backbone, NUM_ROWS, MAX_MODEL_LEN, has_decode_graphs=False)
    else:
        fixed = Backbone.from_model(model, device=args.device, dtype=small.dtype, is_deterministic=True)
        variant, other = "deterministic", Engine(fixed, NUM_ROWS, MAX_MODEL_LEN)
    turns = itertools.cycle(range(0, NUM_ROWS, NUM_SEQUENTIAL))

    def one_after_another() -> float:
        first = next(turns)
        return requests_per_second_of_transformers(model, mixed[first : first + NUM_SEQUENTIAL])

    ratios = of_steps(small)
    runs: dict[str, Callable[[], float]] = {
        "mixed tasks": lambda: requests_per_second_of_engine(engine, mixed[:NUM_ROWS]),
        "one task": lambda: requests_per_second_of_engine(engine, one_task[:NUM_ROWS]),
        "64 mixed": lambda: requests_per_second_of_engine(engine, mixed),
        "64 of one task": lambda: requests_per_second_of_engine(engine, one_task),
        "sampled": lambda: requests_per_second_of_engine(engine, sampled),
        variant: lambda: requests_per_second_of_engine(other, mixed[:NUM_ROWS]),
        "one after another": one_after_another,
    }
    measured = interleaved(runs, args.pairs)
    for name, ours, theirs in (
        ("mixed_vs_one_task_32", "mixed tasks", "one task"),
        ("mixed_vs_one_task_64", "64 mixed", "64 of one task"),
        ("sampled_vs_greedy_32", "sampled", "mixed tasks"),
        ("deterministic_vs_default", "deterministic", "mixed tasks"),
        ("graphs_vs_ordinary_32", "mixed tasks", "ordinary steps"),
        ("vs_sequential_32", "mixed tasks", "one after another"),
    ):
        if ours in measured and theirs in measured:
            ratios[name] = [a / b for a, b in zip(measured[ours], measured[theirs], strict=True)]
    rows = {f"{label}, requests/s ({small.dtype})": numbers for label, numbers in measured.items()} | ratios
    finish("engine", rows, {name: statistics.median(numbers) for name, numbers in ratios.items()}, args.out)


if __name__ == "__main__":
    main()
