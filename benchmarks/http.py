"""What HTTP, text and the event loop leave of the engine's throughput, streaming and not; and how long callers wait.

A real server, and 64 clients in a process of their own that read raw sockets, count events and parse no JSON. Beside it
the engine alone: its process without the server's, the same requests put into its channel, as many at a time. GPT-2
small's shape with random weights, 64 rows of 64 tasks, prefix 10, prompt 32, 64 new tokens, greedy, the end-of-text
token forbidden. In turns; whoever does not run only waits. Each client asks `--rounds` times.

- `streaming_vs_engine_64`, `plain_vs_engine_64`: requests per second over those of the engine, the median of the pairs'
  ratios.

Then requests that come at random moments (Poisson), at `--load` of the streaming rate: percentiles of the first token
and of the whole answer, in seconds.

    python -m benchmarks.http [--pairs 3] [--rounds 3] [--load 0.7] [--dtype bfloat16] [--out FILE.json]
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from itertools import accumulate

from batching.types import Request, SamplingParams, StepOutput
from benchmarks.arguments import device_and_dtype, make_parser
from benchmarks.load import Answer, Arrivals, Connection, generate, percentile
from benchmarks.random_server import ServerSettings, random_model, random_prefixes, serving
from benchmarks.report import finish
from prefix_store.prefix import BackboneShape, Prefix
from server.async_engine import AsyncEngine
from server.engine_messages import Allocate, Letter, LoadBackbone
from server.engine_process import EngineProcess

NUM_CLIENTS = 64
NUM_VIRTUAL_TOKENS = 10
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
MAX_MODEL_LEN = 256
MAX_SECONDS = 600.0  # for one request
NUM_ARRIVALS = 200
PERCENTS = (50, 90, 99)
TASKS = tuple(f"task-{i}" for i in range(NUM_CLIENTS))


@asynccontextmanager
async def engine_alone(settings: ServerSettings) -> AsyncIterator[tuple[AsyncEngine, BackboneShape]]:
    """The engine in its process, without HTTP and without text."""
    process = EngineProcess()
    facts = process.load(LoadBackbone(str(settings.model), settings.device, settings.dtype))
    capacity = process.allocate(Allocate(settings.max_num_seqs, settings.max_model_len, has_reserve=False))
    engine = AsyncEngine(
        process,
        capacity,
        max_open_rows=NUM_CLIENTS,
        stall_timeout=MAX_SECONDS,
        on_pulse=lambda _: None,
        on_death=print,
    )
    await engine.start()
    try:
        yield engine, facts.spec.shape
    finally:
        await engine.stop()


async def requests_per_second_of_engine(engine: AsyncEngine, prefixes: Sequence[Prefix], num_rounds: int) -> float:
    """Each prefix has a client that asks anew as soon as it is answered."""
    params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)

    async def keep_asking(number: int, prefix: Prefix) -> None:
        for round_number in range(num_rounds):
            prompt = tuple(random.Random(number).choices(range(1, 4000), k=NUM_PROMPT_TOKENS))
            request = Request(f"{number}-{round_number}", "default", prompt, prefix, params)
            with engine.submitted(request, read=is_last) as mailbox:
                await mailbox.wait(MAX_SECONDS)

    started_at = time.perf_counter()
    await asyncio.gather(*(keep_asking(number, prefix) for number, prefix in enumerate(prefixes)))
    return len(prefixes) * num_rounds / (time.perf_counter() - started_at)


def is_last(letter: Letter) -> bool:
    return isinstance(letter, StepOutput) and letter.finish_reason is not None


def requests_per_second_of_server(port: int, is_streaming: bool, num_rounds: int) -> float:
    """Run in the clients' process."""

    async def keep_asking(task_id: str) -> None:
        request = generate(task_id, num_new_tokens=NUM_NEW_TOKENS, stream=is_streaming)
        connection = await Connection.to(port)
        for _ in range(num_rounds):
            assert (await connection.ask(request)).status == 200
        connection.close()

    async def ask_all() -> float:
        started_at = time.perf_counter()
        await asyncio.gather(*map(keep_asking, TASKS))
        return len(TASKS) * num_rounds / (time.perf_counter() - started_at)

    return asyncio.run(ask_all())


def waits_of_arrivals(port: int, per_second: float) -> dict[str, list[float]]:
    """Run in the clients' process: streams that begin at random moments, whether or not others have ended."""
    chance = random.Random(0)
    moments = list(accumulate(chance.expovariate(per_second) for _ in range(NUM_ARRIVALS)))
    requests = [generate(task_id, num_new_tokens=NUM_NEW_TOKENS, stream=True) for task_id in TASKS]

    async def ask_all() -> list[Answer]:
        arrivals = Arrivals(port)
        await arrivals.ask(requests, moments)
        return await arrivals.finish()

    answers = asyncio.run(ask_all())
    assert {answer.status for answer in answers} == {200}
    return {"first token, s": [a.wait for a in answers], "whole answer, s": [a.seconds for a in answers]}


async def measure(args: argparse.Namespace, settings: ServerSettings) -> dict[str, list[float]]:
    """Requests per second of each way to ask, in turns; then how long callers wait at `args.load` of them."""
    async with engine_alone(settings) as (engine, shape):
        prefixes = random_prefixes(shape, NUM_VIRTUAL_TOKENS, TASKS)
        with (
            serving(settings, prefixes) as url,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as clients,
        ):
            loop, port = asyncio.get_running_loop(), int(url.rpartition(":")[2])
            ways = ("engine alone", "streaming", "plain")

            async def run(way: str, num_rounds: int) -> float:
                if way == "engine alone":
                    return await requests_per_second_of_engine(engine, list(prefixes.values()), num_rounds)
                is_streaming = way == "streaming"
                return await loop.run_in_executor(
                    clients, requests_per_second_of_server, port, is_streaming, num_rounds
                )

            measured: dict[str, list[float]] = {way: [] for way in ways}
            for way in ways:
                await run(way, 1)
            for pair in range(args.pairs):
                for way in ways if pair % 2 == 0 else reversed(ways):
                    measured[way].append(await run(way, args.rounds))
            per_second = args.load * statistics.median(measured["streaming"])
            waits = await loop.run_in_executor(clients, waits_of_arrivals, port, per_second)
    return measured | waits


def main() -> None:
    parser = make_parser("HTTP and text against the engine alone")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.7)
    args = parser.parse_args()

    device, dtype = device_and_dtype(args)
    with random_model() as model:
        settings = ServerSettings(model, str(device), dtype, NUM_CLIENTS, MAX_MODEL_LEN)
        measured = asyncio.run(measure(args, settings))
    waits = {label: measured.pop(label) for label in list(measured) if label.endswith(", s")}
    alone = measured["engine alone"]
    ratios = {
        f"{way}_vs_engine_64": [a / b for a, b in zip(measured[way], alone, strict=True)]
        for way in ("streaming", "plain")
    }
    rows = {f"{label}, requests/s ({dtype})": numbers for label, numbers in measured.items()} | ratios
    rows |= {
        f"{label}, p{p} at {args.load:g} of the load": [percentile(waits[label], p)]
        for label in waits
        for p in PERCENTS
    }
    finish("http", rows, {name: statistics.median(numbers) for name, numbers in ratios.items()}, args.out)


if __name__ == "__main__":
    main()
