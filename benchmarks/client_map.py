"""What HTTP, the server and our client leave of the engine's throughput: `client.map` against the engine alone.

A server and a client process, as anybody would run them: `client.map` over inputs on four tasks by turns. And the
engine alone: in this process, the same backbone and settings, the same requests, as many at a time, with no text, no
HTTP and no client. Turn by turn; the one that does not run only waits. GPT-2 small's shape with random weights unless
`--model` names another, 32 rows, prefix 10, 64 new tokens, greedy, the end-of-text token forbidden.

- `map_vs_engine`: requests per second of `client.map` over those of the engine, the median of the pairs' ratios.

    python -m benchmarks.client_map [--pairs 3] [--inputs 1000] [--concurrency 64] [--dtype bfloat16] [--out FILE.json]
"""

import contextlib
import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from batching.engine import Engine
from batching.pretrained import load_backbone
from batching.types import Request, SamplingParams, StepOutput
from benchmarks.arguments import device_and_dtype, make_parser
from benchmarks.engine import NUM_NEW_TOKENS, NUM_ROWS, NUM_VIRTUAL_TOKENS
from benchmarks.random_server import ServerSettings, random_model, random_prefixes, serving
from benchmarks.report import finish
from clients.client import Client
from prefix_store.prefix import Prefix
from server.text import Tokenizer
from server.tokenizer_loading import load_tokenizer

TASKS = ("first", "second", "third", "fourth")
WORDS = ("the", "sea", "pub", "of", "city", "name", "is", "food", "price", "river", "old", "new", "near", "cheap")
NUM_WORDS = 24
MAX_MODEL_LEN = 256


def make_inputs(num_inputs: int) -> list[str]:
    """Short words in random order: some thirty tokens."""
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=NUM_WORDS)) for _ in range(num_inputs)]


def make_requests(inputs: Sequence[str], prefixes: dict[str, Prefix], tokenizer: Tokenizer) -> list[Request]:
    params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)
    return [
        Request(str(i), "default", tokenizer.encode(text), prefixes[task], params)
        for i, (task, text) in enumerate(zip(cycle(TASKS), inputs, strict=False))
    ]


def requests_per_second_of_engine(engine: Engine, requests: Sequence[Request], concurrency: int) -> float:
    to_come = iter(requests)
    started_at = time.perf_counter()
    for request in islice(to_come, concurrency):
        engine.add_request(request)
    while engine.has_work:
        num_ended = sum(isinstance(each, StepOutput) and each.finish_reason is not None for each in engine.step())
        for request in islice(to_come, num_ended):
            engine.add_request(request)
    return len(requests) / (time.perf_counter() - started_at)


def requests_per_second_of_map(url: str, inputs: Sequence[str], concurrency: int) -> float:
    """Run in the client's process."""
    tasks = [task for task, _ in zip(cycle(TASKS), inputs, strict=False)]
    with Client(url) as client:
        started_at = time.perf_counter()
        answers = list(
            client.map(
                tasks, inputs, concurrency=concurrency, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS
            )
        )
        seconds = time.perf_counter() - started_at
    assert [answer.task_id for answer in answers] == tasks
    return len(answers) / seconds


def main() -> None:
    parser = make_parser("client.map against the engine alone")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--model", type=Path, help="a folder; default: GPT-2 small's shape with random weights")
    args = parser.parse_args()

    device, dtype = device_and_dtype(args)
    with random_model() if args.model is None else contextlib.nullcontext(args.model) as model:
        backbone = load_backbone(str(model), str(device), dtype)
        engine = Engine(backbone, max_num_seqs=NUM_ROWS, max_model_len=MAX_MODEL_LEN)
        prefixes = random_prefixes(backbone.shape, NUM_VIRTUAL_TOKENS, TASKS)
        inputs = make_inputs(args.inputs)
        settings = ServerSettings(model, str(device), dtype, NUM_ROWS, MAX_MODEL_LEN)
        requests = make_requests(inputs, prefixes, Tokenizer(load_tokenizer(str(model), backbone.vocab_size)))

        measured: dict[str, list[float]] = {"client.map": [], "engine alone": []}
        spawn = multiprocessing.get_context("spawn")
        with (
            serving(settings, prefixes) as url,
            ProcessPoolExecutor(1, mp_context=spawn) as client_process,
        ):

            def measure(label: str, num_inputs: int) -> float:
                if label == "engine alone":
                    return requests_per_second_of_engine(engine, requests[:num_inputs], args.concurrency)
                asked = url, inputs[:num_inputs], args.concurrency
                return client_process.submit(requests_per_second_of_map, *asked).result()

            for label in measured:
                measure(label, NUM_ROWS)
            for pair in range(args.pairs):
                for label in sorted(measured, reverse=pair % 2 == 1):
                    measured[label].append(measure(label, args.inputs))

    ratios = [a / b for a, b in zip(measured["client.map"], measured["engine alone"], strict=True)]
    rows = {f"{label}, requests/s ({dtype})": numbers for label, numbers in measured.items()}
    finish("client_map", rows | {"map_vs_engine": ratios}, {"map_vs_engine": statistics.median(ratios)}, args.out)


if __name__ == "__main__":
    main()
