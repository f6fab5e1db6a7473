"""Two replicas behind Ray Serve against one process on the same cores, and what Ray's proxy adds to a request.

GPT-2 small's shape with random weights, 64 tasks, prefix 10, prompt 32, 64 new tokens, greedy, no stream, clients that
ask anew as soon as they are answered. The process has two threads, 64 slots and 64 clients; each replica has one thread
and 64 slots, and both together have 128 clients, through HAProxy. Started and ended in turns, so that neither has to
share the cores with what the other does while it is idle. The bucket and the database are real and on this machine.

- `replicas_vs_process`: requests per second over the process', the median of the pairs' ratios.
- `ray_added_p50_ms`: the median time of a `GET /ping` through the proxy less that of one sent to a replica itself.
- `one_replica_requests_per_second_N`: one replica, asked without the proxy by N clients while the other is idle: what
  benchmarks.fleet_sim is calibrated with; so is `other_processor_seconds_per_request`, what clients, server and Ray
  take beside the engine.

Needs `make test-fleet`'s environment, and PostgreSQL:

    .venv-fleet/bin/python -m benchmarks.replicas [--pairs 3] [--rounds 3] [--dtype bfloat16] [--out FILE.json]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from safetensors.torch import save

from batching.pretrained import load_backbone
from benchmarks.arguments import device_and_dtype, make_parser
from benchmarks.load import Answer, Connection, generate, percentile, request
from benchmarks.random_server import ServerSettings, random_model, random_prefixes, serving
from benchmarks.report import finish
from clients.client import Client
from prefix_store.prefix import Prefix
from tests.prefix_store.servers import PostgreSQL, SeaweedFS, postgresql, seaweedfs
from tests.server.ray_cluster import Cluster, ray_cluster

NUM_SLOTS = 64
NUM_VIRTUAL_TOKENS = 10
NUM_NEW_TOKENS = 64
MAX_MODEL_LEN = 256
NUM_CALIBRATING_CLIENTS = (1, 8, 32, 64)
NUM_PINGS = 500
TASKS = tuple(f"task-{i}" for i in range(64))


@dataclass(frozen=True, slots=True)
class Throughput:
    requests_per_second: float
    p50_seconds: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """What was seen of two replicas; `one_replica` by number of clients."""

    both: Throughput
    added_p50: float
    one_replica: Mapping[int, Throughput]
    other_processor_seconds: float


def ask(port: int, num_clients: int, num_rounds: int) -> Throughput:
    """So many clients, so many requests each, the tasks in turns."""

    async def keep_asking(number: int) -> list[Answer]:
        connection = await Connection.to(port)
        asked = generate(TASKS[number % len(TASKS)], num_new_tokens=NUM_NEW_TOKENS)
        answers = [await connection.ask(asked) for _ in range(num_rounds)]
        connection.close()
        return answers

    async def ask_all() -> list[Answer]:
        return [each for answers in await asyncio.gather(*map(keep_asking, range(num_clients))) for each in answers]

    started_at = time.perf_counter()
    answers = asyncio.run(ask_all())
    seconds = time.perf_counter() - started_at
    assert {answer.status for answer in answers} == {200}
    return Throughput(len(answers) / seconds, percentile([answer.seconds for answer in answers], 50))


def ping_p50(port: int) -> float:
    """Seconds, one after another on one connection."""

    async def ping() -> list[float]:
        connection = await Connection.to(port)
        seconds = [(await connection.ask(request("GET", "/ping"))).seconds for _ in range(NUM_PINGS)]
        connection.close()
        return seconds

    return percentile(asyncio.run(ping()), 50)


def port_of(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port


def process_throughput(settings: ServerSettings, prefixes: Mapping[str, Prefix], num_rounds: int) -> Throughput:
    with serving(settings, prefixes) as url:
        ask(port_of(url), NUM_SLOTS, 1)
        return ask(port_of(url), NUM_SLOTS, num_rounds)


@contextmanager
def replicas(
    settings: ServerSettings, prefixes: Mapping[str, Prefix], database: PostgreSQL, bucket: SeaweedFS
) -> Iterator[Cluster]:
    environment = {
        **bucket.environment,
        "POLYPREFIX_STORE": "s3://benchmarks/store",
        "POLYPREFIX_REGISTRY": f"{database.url}postgres",
        "POLYPREFIX_NO_AUTH": "true",
        "POLYPREFIX_MODEL": str(settings.model),
        "POLYPREFIX_DTYPE": settings.dtype,
        "POLYPREFIX_MAX_NUM_SEQS": str(settings.max_num_seqs),
        "POLYPREFIX_MAX_MODEL_LEN": str(settings.max_model_len),
    }
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as folder, ray_cluster(Path(folder), environment) as cluster:
        cluster.deploy()
        with Client(cluster.url) as client:
            for task_id, prefix in prefixes.items():
                client.upload(task_id, save({"past_key_values": prefix.past_key_values}, {"format": "polyprefix/1"}))
        yield cluster


def look_at(cluster: Cluster, num_rounds: int) -> Fleet:
    ask(cluster.port, 2 * NUM_SLOTS, 1)
    both = ask(cluster.port, 2 * NUM_SLOTS, num_rounds)
    direct = port_of(cluster.replica_urls[0])
    added = ping_p50(cluster.port) - ping_p50(direct)
    one = {num_clients: ask(direct, num_clients, num_rounds) for num_clients in NUM_CALIBRATING_CLIENTS}
    before = other_processor_seconds()
    ask(direct, NUM_SLOTS, num_rounds)
    return Fleet(both, added, one, (other_processor_seconds() - before) / (NUM_SLOTS * num_rounds))


def other_processor_seconds() -> float:
    """What this process and those that it started have used, but for the engines."""
    mine = psutil.Process()
    others = [each for each in mine.children(recursive=True) if "server.engine_main" not in each.cmdline()]
    return sum(float(times.user + times.system) for times in (each.cpu_times() for each in (mine, *others)))


def main() -> None:
    parser = make_parser("Two replicas behind Ray Serve against one process")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args: argparse.Namespace = parser.parse_args()

    device, dtype = device_and_dtype(args)
    processes: list[Throughput] = []
    fleets: list[Fleet] = []
    with random_model() as model, tempfile.TemporaryDirectory(prefix="polyprefix-") as folder:
        settings = ServerSettings(model, str(device), dtype, NUM_SLOTS, MAX_MODEL_LEN)
        prefixes = random_prefixes(load_backbone(str(model), "cpu", "float32").shape, NUM_VIRTUAL_TOKENS, TASKS)
        with postgresql() as database, seaweedfs(Path(folder)) as bucket:
            for _ in range(args.pairs):
                processes.append(process_throughput(settings, prefixes, args.rounds))
                with replicas(settings, prefixes, database, bucket) as cluster:
                    fleets.append(look_at(cluster, args.rounds))

    ratios = [
        fleet.both.requests_per_second / process.requests_per_second
        for fleet, process in zip(fleets, processes, strict=True)
    ]
    rows = {
        f"one process, requests/s ({dtype})": [each.requests_per_second for each in processes],
        "two replicas, requests/s": [each.both.requests_per_second for each in fleets],
        "one process, p50, s": [each.p50_seconds for each in processes],
        "two replicas, p50, s": [each.both.p50_seconds for each in fleets],
        "replicas_vs_process": ratios,
        "ray_added_p50_ms": [each.added_p50 * 1e3 for each in fleets],
        "other_processor_seconds_per_request": [each.other_processor_seconds for each in fleets],
    }
    for num_clients in NUM_CALIBRATING_CLIENTS:
        rows[f"one_replica_requests_per_second_{num_clients}"] = [
            each.one_replica[num_clients].requests_per_second for each in fleets
        ]
    figures = {name: statistics.median(numbers) for name, numbers in rows.items() if " " not in name}
    figures["two_replicas_requests_per_second"] = statistics.median(rows["two replicas, requests/s"])
    figures["two_replicas_p50_seconds"] = statistics.median(rows["two replicas, p50, s"])
    finish("replicas", rows, figures, args.out)


if __name__ == "__main__":
    main()
