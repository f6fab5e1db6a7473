"""A load that costs little: requests written once, raw sockets, no JSON and no text read, in one event loop.

The two cores are shared with the server, so whoever asks must not be what is measured. Knows HTTP/1.1 as the server
speaks it. Knows nothing of what is asked.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, cast

CLOSING = b"\r\nconnection: close\r\n"
NO_CONTENT = b"HTTP/1.1 204"
END_OF_CHUNKS = b"\r\n0\r\n\r\n"
MAX_IDLE_SECONDS = 3.0
EVENT = b"data:"
OnData = Callable[[bytes], None]
_LENGTH = re.compile(rb"content-length: (\d+)\r\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer's status and moments, in seconds of `time.monotonic`.

    `status` 0: the connection ended without an answer, or within it.
    """

    status: int
    sent_at: float
    first_byte_at: float
    ended_at: float

    @property
    def wait(self) -> float:
        """From the request's last byte written to the answer's first byte read."""
        return self.first_byte_at - self.sent_at

    @property
    def seconds(self) -> float:
        return self.ended_at - self.sent_at


class Connection(asyncio.Protocol):
    """One request after the other, on one connection. `on_data` is given all bytes as they come."""

    def __init__(self, on_data: OnData | None = None) -> None:
        self._on_data = on_data
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = b""
        self._sent_at = self._first_byte_at = 0.0
        self._num_bytes: int | None = None  # of the whole answer, where it says so at its beginning

    @classmethod
    async def to(cls, port: int, on_data: OnData | None = None) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(on_data), "127.0.0.1", port)
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_fresh(self) -> bool:
        """Whether the server has not closed it and will not just now, as it does where nothing came for 5 seconds."""
        return self.is_open and time.monotonic() - self._sent_at < MAX_IDLE_SECONDS

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None, "made by `to`"
        self._answer = asyncio.get_running_loop().create_future()
        self._received, self._num_bytes = b"", None
        self._transport.write(request)
        self._sent_at = time.monotonic()
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._first_byte_at = time.monotonic()
        self._received += data
        if self._on_data is not None:
            self._on_data(data)
        if self._is_whole():
            if CLOSING in self._received:
                self.close()
            self._end(int(self._received[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(0)

    def _is_whole(self) -> bool:
        if self._num_bytes is None:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return False
            if self._received.startswith(NO_CONTENT):
                return True
            length = _LENGTH.search(self._received, 0, head + 2)
            if length is None:
                return self._received.endswith(END_OF_CHUNKS)
            self._num_bytes = head + 4 + int(length.group(1))
        return len(self._received) == self._num_bytes

    def _end(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            now = time.monotonic()
            self._answer.set_result(Answer(status, self._sent_at, self._first_byte_at or now, now))


def request(method: str, path: str, body: bytes = b"", key: str | None = None, **headers: str) -> bytes:
    fields = {"host": "localhost", "content-length": str(len(body)), **headers}
    if key is not None:
        fields["authorization"] = f"Bearer {key}"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def generate(
    task_id: str, *, num_prompt_tokens: int = 32, num_new_tokens: int, key: str | None = None, stream: bool = False
) -> bytes:
    """A request whose prompt and whose answer have exactly so many tokens."""
    parameters: dict[str, Any] = {
        "truncate": num_prompt_tokens,
        "max_new_tokens": num_new_tokens,
        "min_new_tokens": num_new_tokens,
    }
    body = {"task_id": task_id, "inputs": " the" * 2 * num_prompt_tokens, "parameters": parameters, "stream": stream}
    return request("POST", "/generate", json.dumps(body).encode(), key, content_type="application/json")


async def keep_asking(
    port: int,
    requests: Sequence[bytes],
    num_at_once: int,
    seconds: float,
    on_data: OnData | None = None,
    gap: float = 0.0,
) -> list[Answer]:
    """So many in flight all the time, each connection asking anew `gap` seconds after it is answered.

    Returns what was answered in time. Each connection begins at another place of `requests`, and goes round.
    """
    answers: list[Answer] = []

    async def ask(first: int) -> None:
        turn = cycle([*requests[first:], *requests[:first]])
        connection = await Connection.to(port, on_data)
        try:
            while True:
                answers.append(await connection.ask(next(turn)))
                await asyncio.sleep(gap)
                if not connection.is_open:
                    connection = await Connection.to(port, on_data)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(ask(i % len(requests))) for i in range(num_at_once)]
        await asyncio.sleep(seconds)
        for task in asking:
            task.cancel()
    return answers


async def ask_at_once(port: int, requests: Sequence[bytes]) -> list[Answer]:
    """Each on a connection of its own."""
    connections = [await Connection.to(port) for _ in requests]
    try:
        asking = (connection.ask(request) for connection, request in zip(connections, requests, strict=True))
        return await asyncio.gather(*asking)
    finally:
        for connection in connections:
            connection.close()


def evenly(per_second: float, seconds: float) -> list[float]:
    """Moments of arrival, in seconds from the first."""
    return [number / per_second for number in range(round(per_second * seconds))]


@dataclass(slots=True)
class Arrivals:
    """Requests that come at their own moments, whether or not the ones before were answered: an open loop."""

    port: int
    on_data: OnData | None = None
    answers: list[Answer] = field(default_factory=list)
    _idle: list[Connection] = field(default_factory=list)
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    async def ask(self, requests: Sequence[bytes], moments: Iterable[float]) -> None:
        """Goes round the requests; returns after the last was sent."""
        started_at = time.monotonic()
        for request, moment in zip(cycle(requests), moments, strict=False):
            if (early := started_at + moment - time.monotonic()) > 0:
                await asyncio.sleep(early)
            task = asyncio.create_task(self._ask_once(request))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def finish(self) -> list[Answer]:
        """All that was asked, once the last is answered."""
        await asyncio.gather(*self._asking)
        for connection in self._idle:
            connection.close()
        return self.answers

    async def _ask_once(self, request: bytes) -> None:
        connection = self._idle_connection() or await Connection.to(self.port, self.on_data)
        self.answers.append(await connection.ask(request))
        if connection.is_open:
            self._idle.append(connection)

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh:
                return connection
            connection.close()
        return None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


@contextmanager
def processor_seconds() -> Iterator[list[float]]:
    """What this process uses of the processors while the block runs: the load's own cost, its one element."""
    spent: list[float] = []
    before = time.process_time()
    yield spent
    spent.append(time.process_time() - before)
