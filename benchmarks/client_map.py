"""What HTTP, the server and our client leave of the engine's throughput: `client.map` against the engine alone.

A server process and a client process, as anybody would run them: `client.map` over inputs on four tasks by turns. And
the engine alone: in this process, the same backbone and settings, the same requests put into its inbox, as many at a
time, with no text, no HTTP and no client. Turn by turn; the one that does not run only waits. GPT-2 small's
shape with random weights unless `--model` names another, 32 rows, prefix 10, 64 new tokens, greedy, the end-of-text
token forbidden.

- `map_vs_engine`: requests per second of `client.map` over those of the engine, the median of the pairs' ratios.

    python -m benchmarks.client_map [--pairs 3] [--inputs 1000] [--concurrency 64] [--dtype bfloat16] [--out FILE.json]
"""

import argparse
import asyncio
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import GPT2Config, GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import DTYPES, Backbone, default_dtype, load_backbone, resolve_device
from batching.types import Request, SamplingParams, StepOutput
from benchmarks.embedded_server import free_port
from benchmarks.engine import NUM_NEW_TOKENS, NUM_ROWS, NUM_VIRTUAL_TOKENS
from benchmarks.report import finish
from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo_tasks import POCKET
from prefix_store.prefix import Prefix
from server.async_engine import AsyncEngine
from server.mailboxes import Mailbox
from server.text import Tokenizer

TASKS = ("first", "second", "third", "fourth")
WORDS = ("the", "sea", "pub", "of", "city", "name", "is", "food", "price", "river", "old", "new", "near", "cheap")
NUM_WORDS = 24
MAX_MODEL_LEN = 256
MAX_SECONDS = 600.0  # for one request of the engine alone


def save_random_model(folder: Path) -> None:
    """GPT-2 small's shape, with the embedded model's tokenizer, which has fewer tokens."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    for file in POCKET.glob("tokenizer*.json"):
        shutil.copy(file, folder)


def make_prefixes(backbone: Backbone) -> dict[str, Prefix]:
    shape = backbone.shape
    size = (shape.n_layer, 2, NUM_VIRTUAL_TOKENS, shape.n_head, shape.head_dim)
    return {
        task: Prefix(torch.randn(size, generator=torch.Generator().manual_seed(i)), revision=task, kind="prefix")
        for i, task in enumerate(TASKS)
    }


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


async def requests_per_second_of_engine(engine: Engine, requests: Sequence[Request], concurrency: int) -> float:
    alone = AsyncEngine(
        engine, max_open_rows=concurrency, stall_timeout=MAX_SECONDS, on_pulse=lambda _: None, on_death=print
    )
    free = asyncio.Semaphore(concurrency)

    async def run(request: Request) -> None:
        async with free:
            with alone.submitted(request) as mailbox:
                while all(letter.finish_reason is None for letter in await steps_of(mailbox)):
                    pass

    alone.start()
    started_at = time.perf_counter()
    await asyncio.gather(*map(run, requests))
    seconds = time.perf_counter() - started_at
    await alone.stop()
    return len(requests) / seconds


async def steps_of(mailbox: Mailbox) -> list[StepOutput]:
    return [letter for letter in await mailbox.take(MAX_SECONDS) if isinstance(letter, StepOutput)]


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


@contextmanager
def serving(model: Path, dtype: str, device: str, prefixes: dict[str, Prefix], folder: Path) -> Iterator[str]:
    """The server's address. Its settings are the engine's own here."""
    port, log = free_port(), folder / "server.log"
    options = ["--model", str(model), "--store", str(folder / "store"), "--port", str(port), "--dtype", dtype]
    options += ["--device", device, "--max-num-seqs", str(NUM_ROWS), "--max-model-len", str(MAX_MODEL_LEN)]
    url = f"http://127.0.0.1:{port}"
    with child_server(options, log) as process, Client(url) as client:
        wait_until_ready(client, process, log)
        for task, prefix in prefixes.items():
            client.upload(task, save({"past_key_values": prefix.past_key_values}, {"format": "polyprefix/1"}))
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description="client.map against the engine alone")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--model", type=Path, help="a folder; default: GPT-2 small's shape with random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    device = resolve_device(args.device)
    dtype = default_dtype(device) if args.dtype == "auto" else args.dtype
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as temporary:
        folder = Path(temporary)
        model = args.model or folder / "model"
        if args.model is None:
            save_random_model(model)
        backbone = load_backbone(str(model), str(device), dtype)
        engine = Engine(backbone, max_num_seqs=NUM_ROWS, max_model_len=MAX_MODEL_LEN)
        prefixes, inputs = make_prefixes(backbone), make_inputs(args.inputs)
        requests = make_requests(inputs, prefixes, Tokenizer.load(str(model), backbone.vocab_size))

        measured: dict[str, list[float]] = {"client.map": [], "engine alone": []}
        spawn = multiprocessing.get_context("spawn")
        with (
            serving(model, dtype, str(device), prefixes, folder) as url,
            ProcessPoolExecutor(1, mp_context=spawn) as client_process,
        ):

            def measure(label: str, num_inputs: int) -> float:
                if label == "engine alone":
                    return asyncio.run(requests_per_second_of_engine(engine, requests[:num_inputs], args.concurrency))
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
