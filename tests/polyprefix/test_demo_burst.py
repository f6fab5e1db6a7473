"""The demo's burst at a real server whose engine stands still until all of it has come."""

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo import NUM_EXAMPLES
from polyprefix.demo_burst import ask_at_once, ask_one_by_one, mixed, sharing
from polyprefix.demo_tasks import PLAIN_TEXT_TASKS, publish
from tests.child_processes import child_pids


def num_waiting(url: str) -> int:
    """How many requests have come that no step has held, as the live view says to one who begins to watch."""
    with httpx.stream("GET", f"{url}/live") as answer:
        event = next(line for line in answer.iter_lines() if line)
    return sum(tenant["requests"] for tenant in json.loads(event.removeprefix("data: "))["waiting"])


def wait_until_all_wait(url: str, num_requests: int) -> None:
    deadline = time.monotonic() + 20
    while (num := num_waiting(url)) < num_requests:
        assert time.monotonic() < deadline, f"{num} of {num_requests} requests wait"
        time.sleep(0.02)


def test_requests_of_seven_tasks_that_wait_together_share_one_step(
    tiny_model: Path, free_port: int, tmp_path: Path
) -> None:
    url, log = f"http://127.0.0.1:{free_port}", tmp_path / "server.log"
    options = ["--model", str(tiny_model), "--store", str(tmp_path), "--port", str(free_port), "--dtype", "float32"]
    asks = mixed(PLAIN_TEXT_TASKS, NUM_EXAMPLES)
    with child_server(options, log) as process, Client(url) as client:
        wait_until_ready(client, process, log)
        publish(client, PLAIN_TEXT_TASKS)
        alone = list(ask_one_by_one(client, asks))  # after which no prefix has to be read first
        (engine,) = child_pids(process.pid)
        os.kill(engine, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asyncio.run, ask_at_once(url, asks))
            try:
                wait_until_all_wait(url, len(asks))
            finally:
                os.kill(engine, signal.SIGCONT)
            together = asked.result()
    first = sharing(together)[0]
    assert (first.num_rows, first.num_tasks) == (28, 7)
    assert [row.answer for row in together] == [row.answer for row in alone]
