"""What a server at full load has in memory beyond what it must have.

A real server with GPT-2 small's shape and random weights, 64 slots of 1,024 positions and the default gibibyte for
prefixes, filled by 64 tasks of 218 virtual tokens in float32. 64 clients each ask another task, so that every slot is
read and written to its end. Memory is what is resident in all processes of the server, a page that several of them have
in common counted once, as the limit of a container counts it (Linux' PSS); at its highest while they are answered.

- `memory_overhead`: what is resident beyond the weights, the slots and the prefixes, over the sum of these three.

    python -m benchmarks.memory [--dtype bfloat16] [--out FILE.json]
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from transformers import GPT2Config, GPT2LMHeadModel

from batching.gpt2 import float_dtype_of
from benchmarks.arguments import device_and_dtype, make_parser
from benchmarks.random_server import ServerSettings, random_model, random_prefixes, serving
from benchmarks.report import finish
from clients.client import Client
from prefix_store.prefix import BackboneShape

NUM_ROWS = 64
MAX_MODEL_LEN = 1024
NUM_VIRTUAL_TOKENS = 218
NUM_NEW_TOKENS = 64
WORD = " the"  # one token
SECONDS_BETWEEN_LOOKS = 0.2
PATIENCE = 3600.0  # seconds; it is not time that is measured


@dataclass(slots=True)
class Peak:
    """The most that the descendants of this process have had resident at once, in bytes."""

    num_bytes: int = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                self.num_bytes = max(self.num_bytes, sum(map(resident, psutil.Process().children(recursive=True))))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def resident(process: psutil.Process) -> int:
    """In bytes, its part of what it has in common with others; zero once it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


def main() -> None:
    args = make_parser("A server's memory at full load").parse_args()
    device, dtype = device_and_dtype(args)
    config = GPT2Config()
    shape = BackboneShape(config.n_layer, config.n_head, config.n_embd // config.n_head, config.n_positions)
    item = float_dtype_of(dtype, device).itemsize
    weights = sum(parameter.numel() for parameter in GPT2LMHeadModel(config).parameters()) * item
    slots = NUM_ROWS * MAX_MODEL_LEN * 2 * shape.n_layer * shape.n_embd * item
    tasks = tuple(f"task-{number}" for number in range(NUM_ROWS))
    prefixes = random_prefixes(shape, NUM_VIRTUAL_TOKENS, tasks)
    held = sum(prefix.past_key_values.nbytes for prefix in prefixes.values())
    inputs = [WORD * (MAX_MODEL_LEN - NUM_VIRTUAL_TOKENS - NUM_NEW_TOKENS)] * NUM_ROWS

    os.environ["POLYPREFIX_REQUEST_TIMEOUT"] = str(PATIENCE)
    peak = Peak()
    with random_model() as model:
        settings = ServerSettings(model, str(device), dtype, NUM_ROWS, MAX_MODEL_LEN)
        with serving(settings, prefixes) as url, Client(url, timeout=PATIENCE) as client, peak.watched():
            answers = client.map(
                tasks, inputs, concurrency=NUM_ROWS, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS
            )
            assert len(list(answers)) == NUM_ROWS
    needed = weights + slots + held
    overhead = (peak.num_bytes - needed) / needed
    rows = {"weights, slots and prefixes, MB": [needed / 1e6], "resident, MB": [peak.num_bytes / 1e6]}
    finish("memory", rows | {"memory_overhead": [overhead]}, {"memory_overhead": overhead}, args.out)


if __name__ == "__main__":
    main()
