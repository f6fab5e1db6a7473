"""What many tasks cost: requests by how many tasks there are and how the requests spread over them, and the start.

Stores of 1 to 10,000 tasks: directories with SQLite and a file for each task, 360 KiB, all different. They take 4 GB
of the temporary directory, and minutes on a disk; under TMPDIR=/dev/shm less than one. A request's prefix goes its real
way: the store, its cache, which has room for 1,000 of them, a thread that loads it where it is not there, the engine in
its own process. No HTTP and no text; files that were read or written of late are in the system's memory, as a rule.
GPT-2 small's shape with random weights, 32 rows, 64 open requests, prompt 32, 64 new tokens, greedy, the end-of-text
token forbidden. In turns, each after lookups of its own kind that leave the cache as long use of that kind would.

- `zipf_10000_vs_one_task`: requests per second where the k-th of 10,000 tasks is asked in proportion to 1/k, over those
  on a store of one task; the median of the pairs' ratios. `uniform_10000_vs_one_task` and `distinct_10000_vs_one_task`
  alike; in the latter no request finds its prefix in the cache;
- `ready_10000_vs_10`: seconds from `polyprefix serve` to `/ready` with 10,000 tasks in its store, over those with 10.

    python -m benchmarks.tasks [--pairs 5] [--dtype bfloat16] [--out FILE.json]

Beside FILE.json it draws FILE.png.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import accumulate, count, cycle, islice, repeat
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from batching.types import Request, SamplingParams
from benchmarks.arguments import device_and_dtype, make_parser
from benchmarks.embedded_server import free_port
from benchmarks.http import engine_alone, is_last
from benchmarks.many_tasks import TENANT, prefix_bytes, publish_many, spec_of, task_name
from benchmarks.random_server import ServerSettings, random_model
from benchmarks.report import finish
from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from prefix_store.prefix import BackboneSpec
from prefix_store.store import PrefixStore
from server.async_engine import AsyncEngine

NUMS_OF_TASKS = (1, 10, 100, 1_000, 10_000)
FEW, MANY = 10, 10_000
NUM_CACHED = MANY // 10
NUM_LOOKUPS_BEFORE = 3 * NUM_CACHED  # in which by Zipf's law, too, more tasks are asked than the cache has room for
NUM_ROWS = 32
NUM_OPEN = 2 * NUM_ROWS
NUM_REQUESTS = 4 * NUM_ROWS  # of one run: all rows are busy to its end
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64
MAX_MODEL_LEN = 256
MAX_SECONDS = 600.0  # for one request

Ratios = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Way:
    """Which tasks are asked, by their numbers and without end, on a store of `num_tasks`."""

    num_tasks: int
    numbers: Iterator[int]

    def names(self, num_requests: int) -> Iterator[str]:
        return map(task_name, islice(self.numbers, num_requests))


def uniform(num_tasks: int) -> Way:
    chance = random.Random(0)
    return Way(num_tasks, (chance.randrange(num_tasks) for _ in repeat(None)))


def zipf(num_tasks: int) -> Way:
    chance = random.Random(0)
    bounds = list(accumulate(1 / k for k in range(1, num_tasks + 1)))
    return Way(num_tasks, (chance.choices(range(num_tasks), cum_weights=bounds)[0] for _ in repeat(None)))


def make_ways() -> dict[str, Way]:
    return {f"uniform_{num_tasks}": uniform(num_tasks) for num_tasks in NUMS_OF_TASKS} | {
        f"identical_{MANY}": Way(MANY, repeat(0)),
        f"zipf_{MANY}": zipf(MANY),
        f"distinct_{MANY}": Way(MANY, cycle(range(MANY))),
    }


async def requests_per_second(engine: AsyncEngine, store: PrefixStore, way: Way, ids: Iterator[int]) -> float:
    for name in way.names(NUM_LOOKUPS_BEFORE):
        store.get(TENANT, name)
    to_come = way.names(NUM_REQUESTS)
    params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)

    async def keep_asking() -> None:
        for name in to_come:
            served = store.cached(TENANT, name)
            if served is None:
                served = await asyncio.to_thread(store.get, TENANT, name)
            number = next(ids)
            prompt = tuple(random.Random(number).choices(range(1, 4000), k=NUM_PROMPT_TOKENS))
            request = Request(str(number), TENANT, prompt, served.prefix, params)
            with engine.submitted(request, read=is_last) as mailbox:
                await mailbox.wait(MAX_SECONDS)

    started_at = time.perf_counter()
    await asyncio.gather(*(keep_asking() for _ in range(NUM_OPEN)))
    return NUM_REQUESTS / (time.perf_counter() - started_at)


async def measure_requests(
    folder: Path, spec: BackboneSpec, settings: ServerSettings, num_pairs: int
) -> dict[str, list[float]]:
    """Requests per second of each way, in turns, every other time backwards."""
    ways, ids, cache_bytes = make_ways(), count(), NUM_CACHED * prefix_bytes(spec.shape)
    measured: dict[str, list[float]] = {label: [] for label in ways}
    with ExitStack() as stack:
        stores = {
            num_tasks: stack.enter_context(
                closing(PrefixStore(folder / str(num_tasks), backbone=spec, cache_bytes=cache_bytes))
            )
            for num_tasks in NUMS_OF_TASKS
        }
        async with engine_alone(settings) as (engine, _):
            await requests_per_second(engine, stores[FEW], ways[f"uniform_{FEW}"], ids)  # for warmth
            for pair in range(num_pairs):
                for label in list(ways) if pair % 2 == 0 else reversed(ways):
                    way = ways[label]
                    measured[label].append(await requests_per_second(engine, stores[way.num_tasks], way, ids))
    return measured


def seconds_to_ready(settings: ServerSettings, store: Path) -> float:
    """From the command to the first answer that it is ready."""
    port, log = free_port(), store.with_suffix(".log")
    options = [*settings.options, "--store", str(store), "--port", str(port)]
    started_at = time.perf_counter()
    with child_server(options, log) as process, Client(f"http://127.0.0.1:{port}") as client:
        wait_until_ready(client, process, log)
        return time.perf_counter() - started_at


def measure_starts(folder: Path, settings: ServerSettings, num_pairs: int) -> dict[int, list[float]]:
    """Seconds by the number of tasks, in turns."""
    seconds: dict[int, list[float]] = {FEW: [], MANY: []}
    seconds_to_ready(settings, folder / str(MANY))  # for warmth
    for pair in range(num_pairs):
        for num_tasks in sorted(seconds, reverse=pair % 2 == 1):
            seconds[num_tasks].append(seconds_to_ready(settings, folder / str(num_tasks)))
    return seconds


def draw(path: Path, ratios: Ratios) -> None:
    """Requests per second over those of one task: by the number of tasks, and by how they spread over the most."""
    medians = {label: statistics.median(numbers) for label, numbers in ratios.items()}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    axes[0].plot(NUMS_OF_TASKS, [medians[f"uniform_{num_tasks}"] for num_tasks in NUMS_OF_TASKS], marker="o")
    axes[0].set(xscale="log", xlabel="tasks, asked uniformly", ylabel="requests/s over those of one task")
    spreads = ("identical", "zipf", "uniform", "distinct")
    axes[1].bar(spreads, [medians[f"{spread}_{MANY}"] for spread in spreads])
    axes[1].set(xlabel=f"how requests spread over {MANY:,} tasks")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = make_parser("Many tasks against one")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()

    device, dtype = device_and_dtype(args)
    with random_model() as model, tempfile.TemporaryDirectory(prefix="polyprefix-") as temporary:
        folder, spec = Path(temporary), spec_of(model)
        for num_tasks in NUMS_OF_TASKS:
            publish_many(folder / str(num_tasks), spec, num_tasks)
        settings = ServerSettings(model, str(device), dtype, NUM_ROWS, MAX_MODEL_LEN)
        measured = asyncio.run(measure_requests(folder, spec, settings, args.pairs))
        seconds = measure_starts(folder, settings, args.pairs)

    one_task = measured["uniform_1"]
    to_one_task = {label: _ratios(numbers, one_task) for label, numbers in measured.items()}
    if args.out is not None:
        draw(args.out.with_suffix(".png"), to_one_task)
    ratios = {f"{label}_vs_one_task": numbers for label, numbers in to_one_task.items() if label != "uniform_1"}
    ratios[f"ready_{MANY}_vs_{FEW}"] = _ratios(seconds[MANY], seconds[FEW])
    rows = {f"{label}, requests/s ({dtype})": numbers for label, numbers in measured.items()}
    rows |= {f"ready with {num_tasks} tasks, s": numbers for num_tasks, numbers in seconds.items()}
    finish("tasks", rows | ratios, {name: statistics.median(numbers) for name, numbers in ratios.items()}, args.out)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
