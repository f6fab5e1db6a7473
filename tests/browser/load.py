"""Many requests at once, for as long as a block runs, so that there is something to watch."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from tests.browser.server import TASKS


@contextmanager
def asked_all_the_time(http: httpx.Client, task_ids: Sequence[str], num_at_once: int) -> Iterator[None]:
    """`num_at_once` threads ask, each one request after the other, of random lengths."""
    is_over = threading.Event()
    draw = random.Random(0)

    def ask() -> None:
        while not is_over.is_set():
            task_id = draw.choice(task_ids)
            inputs = draw.choice(TASKS[task_id]["examples"])
            parameters = {"max_new_tokens": draw.randint(10, 60), "temperature": 0.8}
            http.post("/generate", json={"task_id": task_id, "inputs": inputs, "parameters": parameters})

    threads = [threading.Thread(target=ask) for _ in range(num_at_once)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
