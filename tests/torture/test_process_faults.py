"""The whole server: its engine killed or stopped, clients that leave it, its tasks changed while they run, its backbone
damaged.

`pytest -m torture tests/torture/test_process_faults.py`; ten minutes, most of them starting servers.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load import request
from polyprefix.demo_tasks import POCKET
from tests.child_processes import child_pids
from tests.torture.processes import SERVE, ServerProcess, launcher, prefix_file

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

NUM_KILLED, NUM_STOPPED = 15, 5
NUM_ASKING = 4
MOST_SECONDS = 35  # for which the server may say that it is healthy when its engine is not
NUM_LEAVING = 300
MOST_SECONDS_TO_FREE = 0.25
NUM_CHANGES = 150
NUM_TRUNCATED = 12


def body(inputs: str, num_new_tokens: int) -> dict[str, Any]:
    """Of a request for so many tokens of the task `asked`."""
    parameters = {"max_new_tokens": num_new_tokens, "min_new_tokens": num_new_tokens}
    return {"inputs": inputs, "task_id": "asked", "parameters": parameters}


class Stream:
    """A streamed answer as it comes."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.events: list[dict[str, Any]] = []

    @property
    def token_ids(self) -> list[int]:
        return [event["token"]["id"] for event in self.events]

    async def read(self, http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
        async with http.stream("POST", "/generate_stream", json=asked) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    self.events.append(json.loads(line.removeprefix("data:")))
                    self.has_begun.set()


@dataclass(frozen=True, slots=True)
class Broken:
    """What came of a server whose engine broke: for how long it said that it was healthy, how it ended, how many of
    those who waited were told of an error, and how many of its processes were left."""

    healthy_seconds: float
    exit_status: int
    num_told: int
    num_left: int


async def break_engine(server: ServerProcess, how: signal.Signals) -> Broken:
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as http:
        (await http.put("/tasks/asked", content=prefix_file("e2e"))).raise_for_status()
        streams = [Stream() for _ in range(NUM_ASKING // 2)]
        reading = [asyncio.create_task(stream.read(http, body("name : Cotto", 300))) for stream in streams]
        waiting = [
            asyncio.create_task(http.post("/generate", json=body("name : Cotto", 300))) for _ in range(NUM_ASKING // 2)
        ]
        for stream in streams:
            await stream.has_begun.wait()
        children = child_pids(server.popen.pid)
        for child in children:
            os.kill(child, how)
        healthy_seconds = await watch(server, http)
        await asyncio.gather(*reading)
        answers = await asyncio.gather(*waiting)
    exit_status = await asyncio.to_thread(server.popen.wait, 60)
    return Broken(
        healthy_seconds,
        exit_status,
        num_told=sum("error" in stream.events[-1] for stream in streams)
        + sum(answer.status_code == 503 for answer in answers),
        num_left=sum(is_running(child) for child in children),
    )


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def watch(server: ServerProcess, http: httpx.AsyncClient) -> float:
    """When it last said that it is healthy, in seconds from now; until it has ended, or says that it is not."""
    began_at, healthy_seconds = time.monotonic(), 0.0
    while server.popen.poll() is None:
        try:
            answer = await http.get("/health")
        except httpx.TransportError:  # it ends
            break
        if answer.status_code != 200:
            break
        healthy_seconds = time.monotonic() - began_at
        await asyncio.sleep(0.02)
    return healthy_seconds


def test_a_server_whose_engine_is_gone_says_so_and_ends(tmp_path: Path, report: dict[str, float]) -> None:
    ways = [signal.SIGKILL] * NUM_KILLED + [signal.SIGSTOP] * NUM_STOPPED
    with launcher(tmp_path) as launch:
        broken = [asyncio.run(break_engine(launch(), how)) for how in ways]
    report["engines_broken"] = len(broken)
    report["engines_broken_stale_health"] = sum(each.healthy_seconds > MOST_SECONDS for each in broken)
    report["engines_killed_healthy_seconds"] = round(max(each.healthy_seconds for each in broken[:NUM_KILLED]), 2)
    report["engines_stopped_healthy_seconds"] = round(max(each.healthy_seconds for each in broken[NUM_KILLED:]), 1)
    report["engines_broken_exit_0"] = sum(each.exit_status <= 0 for each in broken)
    report["engines_broken_not_told"] = sum(NUM_ASKING - each.num_told for each in broken)
    report["engines_broken_left"] = sum(each.num_left for each in broken)
    for each in broken:
        assert each.healthy_seconds <= MOST_SECONDS
        assert each.exit_status > 0
        assert (each.num_told, each.num_left) == (NUM_ASKING, 0)


# -- a client that leaves ----------------------------------------------------------------------------------------------


async def leave(server: ServerProcess, http: httpx.AsyncClient, is_stream: bool) -> list[float]:
    """Two clients leave, the one that is queued and then the one that has the only slot: how many seconds later the
    metrics said that it was gone."""
    path = "/generate_stream" if is_stream else "/generate"
    content = json.dumps({**body("name : Cotto", 300), "task_id": "base"}).encode()
    asked = request("POST", path, content, content_type="application/json")
    connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    for _, writer in connections:
        writer.write(asked)
    await wait_for(http, running=1, waiting=1)
    seconds = []
    for (_, writer), (running, waiting) in zip(reversed(connections), ((1, 0), (0, 0)), strict=True):
        writer.transport.abort()
        left_at = time.monotonic()
        await wait_for(http, running=running, waiting=waiting)
        seconds.append(time.monotonic() - left_at)
    return seconds


async def wait_for(http: httpx.AsyncClient, **expected: int) -> None:
    lines = {f"polyprefix_requests_{name} {number}.0" for name, number in expected.items()}
    deadline = time.monotonic() + 20
    while not lines <= set((await http.get("/metrics")).text.splitlines()):
        assert time.monotonic() < deadline, expected


async def leave_many(server: ServerProcess) -> list[float]:
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        return sorted([each for place in range(NUM_LEAVING // 2) for each in await leave(server, http, place % 2 == 0)])


@pytest.mark.alone
def test_what_a_client_that_leaves_had_is_soon_free(tmp_path: Path, report: dict[str, float]) -> None:
    with launcher(tmp_path) as launch:
        seconds = asyncio.run(leave_many(launch("--max-num-seqs", "1")))
    report["disconnects_timed"] = len(seconds)
    report["disconnect_freed_ms_median"] = round(seconds[len(seconds) // 2] * 1e3, 1)
    report["disconnect_freed_ms_largest"] = round(seconds[-1] * 1e3, 1)
    assert seconds[-1] <= MOST_SECONDS_TO_FREE


# -- a task that is changed while it runs ------------------------------------------------------------------------------


async def replace(http: httpx.AsyncClient) -> httpx.Response:
    return await http.put("/tasks/asked", content=prefix_file("events_1"))


async def delete(http: httpx.AsyncClient) -> httpx.Response:
    return await http.delete("/tasks/asked")


async def roll_back(http: httpx.AsyncClient) -> httpx.Response:
    return await http.patch("/tasks/asked", json={"version": 1})


async def change_while_it_runs(server: ServerProcess) -> tuple[int, int]:
    """How many answers had come whole before the change was, and how many had other tokens than without one."""
    num_early = num_changed = 0
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        for place, change in enumerate(islice(cycle((replace, delete, roll_back)), NUM_CHANGES)):
            (await http.delete("/tasks/asked")) if place else None
            for name in ("homes_acts", "e2e"):  # and the second is served
                (await http.put("/tasks/asked", content=prefix_file(name))).raise_for_status()
            asked = body(f"name : Cotto | near : number {place}", 200)
            alone, changed = Stream(), Stream()
            await alone.read(http, asked)
            reading = asyncio.create_task(changed.read(http, asked))
            await changed.has_begun.wait()
            (await change(http)).raise_for_status()
            num_early += reading.done()
            await reading
            num_changed += changed.token_ids != alone.token_ids
            assert len(alone.token_ids) == 200
    return num_early, num_changed


def test_a_row_ends_on_the_version_that_it_began_with(tmp_path: Path, report: dict[str, float]) -> None:
    with launcher(tmp_path) as launch:
        num_early, num_changed = asyncio.run(change_while_it_runs(launch("--dtype", "float32")))
    report["changes_while_running"] = NUM_CHANGES - num_early
    report["changes_while_running_other_tokens"] = num_changed
    assert num_early == 0
    assert num_changed == 0


# -- a backbone that is wrong ------------------------------------------------------------------------------------------


def set_in_config(**values: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        config = model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **values}))

    return damage


def truncated(num_bytes: int) -> Callable[[Path], None]:
    return lambda model: os.truncate(model / "model.safetensors", num_bytes)


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def rewritten(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        content = (model / name).read_bytes()
        assert old in content
        (model / name).write_bytes(content.replace(old, new, 1))

    return damage


def damages() -> Mapping[str, Callable[[Path], None]]:
    size, chance = (POCKET / "model.safetensors").stat().st_size, random.Random(7)
    lengths = [0, 7, 100, size - 1, *(chance.randrange(101, size - 1) for _ in range(NUM_TRUNCATED - 4))]
    return {
        **{f"truncated to {length} bytes": truncated(length) for length in lengths},
        "another architecture": set_in_config(model_type="bert", architectures=["BertModel"]),
        "more layers": set_in_config(n_layer=7),
        "fewer layers": set_in_config(n_layer=5),
        "wider": set_in_config(n_embd=512),
        "heads that do not divide it": set_in_config(n_head=7),
        "more words": set_in_config(vocab_size=5000),
        "more positions": set_in_config(n_positions=1024),
        "no configuration": without("config.json"),
        "a configuration that is not JSON": rewritten("config.json", b"{", b"["),
        "no weights": without("model.safetensors"),
        "no tokenizer": without("tokenizer.json"),
        "a tensor of another name": rewritten("model.safetensors", b"h.3.mlp.c_fc.bias", b"h.3.mlp.c_fc.bIAs"),
        "a header that is not JSON": rewritten("model.safetensors", b'{"', b"{{"),
    }


def test_a_wrong_or_truncated_backbone_is_refused(tmp_path: Path, report: dict[str, float]) -> None:
    model, wrong = tmp_path / "model", {}
    for what, damage in damages().items():
        shutil.copytree(POCKET, model, ignore=shutil.ignore_patterns("prefixes"))
        damage(model)
        ended = subprocess.run(
            [*SERVE, "--model", str(model), "--store", str(tmp_path / "store"), "--port", "0"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        says_why = "polyprefix serve: " in ended.stderr and "Traceback" not in ended.stderr
        if ended.returncode <= 0 or ended.stdout or not says_why:
            wrong[what] = (ended.returncode, ended.stdout, ended.stderr[-500:])
        shutil.rmtree(model)
    report["backbones_damaged"] = len(damages())
    report["backbones_damaged_not_refused"] = len(wrong)
    assert wrong == {}
