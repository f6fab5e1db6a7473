"""What a server sees in a long life, all at once: many tasks of two tenants asked for, uploaded, replaced and deleted,
clients that leave, and requests that are wrong.

Knows HTTP bodies and which statuses they may get. Knows nothing of what is measured meanwhile.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import chain

from safetensors.torch import load

from benchmarks.load import Answer, Connection, generate, keep_asking, request
from prefix_store.formats import dump
from tests.torture.processes import prefix_file

NUM_TASKS = 40
NUM_FILES = 120
NUM_ASKING, NUM_CHANGING, NUM_LEAVING, NUM_WRONG = 12, 1, 2, 1
WRONG_GAP = 0.05  # seconds: what is refused is answered so soon that it would be nearly all there is
# The tasks come and go, so each may be missing; else what is right is answered and what is wrong is refused.
RIGHT = frozenset({200, 201, 204, 404})
REFUSED = frozenset({400, 401, 404, 405, 413, 415, 422})


def asking(key: str) -> list[bytes]:
    """Short answers of all tasks, every other one as a stream."""
    return [
        generate(f"task-{i}", num_prompt_tokens=8, num_new_tokens=4, key=key, stream=i % 2 == 1)
        for i in range(NUM_TASKS)
    ]


def changing(key: str) -> list[bytes]:
    """Two uploads of each task, the second one of which replaces it, then a way back, and for every third its end."""
    keys_and_values = load(prefix_file("weather_fields"))["past_key_values"]
    requests = []
    for i in range(NUM_FILES):
        path = f"/tasks/task-{i % NUM_TASKS}"
        for part in "ab":
            file = dump(keys_and_values, {"file": f"{i}{part}"})
            requests.append(request("PUT", path, file, key))
        requests.append(request("PATCH", path, b'{"version": 1}', key, content_type="application/json"))
        if i % 3 == 0:
            requests.append(request("DELETE", path, b"", key))
    return requests


def wrong(key: str) -> list[bytes]:
    def post(body: bytes, **headers: str) -> bytes:
        return request("POST", "/generate", body, key, **{"content_type": "application/json", **headers})

    parameters: Sequence[Mapping[str, object]] = (
        {"max_new_tokens": 0},
        {"max_new_tokens": 10**9},
        {"temperature": -1},
        {"top_p": 2},
        {"stop": [""]},
    )
    return [
        *(post(json.dumps({"inputs": "the", "parameters": each}).encode()) for each in parameters),
        post(b'{"inputs": NaN}'),
        post(b'{"inputs": "the"'),
        post(b'{"inputs": "\\ud800"}'),
        post(b'{"task_id": "nobody", "inputs": "the"}'),
        post(b"the", content_type="text/plain"),
        request("POST", "/generate", b'{"inputs": "the"}', "pp_12345678_" + "0" * 64, content_type="application/json"),
        request("PUT", "/tasks/broken", b"\x10\x00\x00\x00\x00\x00\x00\x00{not a header", key),
        request("PUT", "/tasks/broken", prefix_file("e2e")[:-2], key),
        request("PUT", "/tasks/..%2f..", prefix_file("e2e"), key),
        request("BREW", "/tasks", b"", key),
        request("GET", "/no/such/route", b"", key),
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n",
    ]


async def leave_streams(port: int, stream: bytes, left: list[Answer]) -> None:
    """Leave after the first token, again and again, until cancelled."""
    while True:
        has_begun = asyncio.Event()
        connection = await Connection.to(port, lambda data, has_begun=has_begun: has_begun.set())
        answering = asyncio.create_task(connection.ask(stream))
        try:
            await has_begun.wait()
        finally:
            connection.close()
        left.append(await answering)


async def churn(port: int, keys: Sequence[str], seconds: float) -> dict[str, list[Answer]]:
    """All of it for so long: the answers of each kind."""
    answers: dict[str, list[Answer]] = {"right": [], "wrong": [], "left": []}
    stream = generate("kept", num_new_tokens=100, key=keys[0], stream=True)
    async with asyncio.TaskGroup() as group:
        right = [
            group.create_task(keep_asking(port, requests, num_at_once, seconds))
            for key in keys
            for requests, num_at_once in ((asking(key), NUM_ASKING), (changing(key), NUM_CHANGING))
        ]
        refused = [group.create_task(keep_asking(port, wrong(key), NUM_WRONG, seconds, gap=WRONG_GAP)) for key in keys]
        leaving = [group.create_task(leave_streams(port, stream, answers["left"])) for _ in range(NUM_LEAVING)]
        await asyncio.sleep(seconds)
        for task in leaving:
            task.cancel()
    answers["right"] += chain.from_iterable(task.result() for task in right)
    answers["wrong"] += chain.from_iterable(task.result() for task in refused)
    return answers
