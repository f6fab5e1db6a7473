"""A hand-written server on a real socket: it notes what it is sent and answers what a test tells it to."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from clients.client import AsyncClient, Client


@dataclass(frozen=True)
class Received:
    """One request as it came in; `port` tells its connection."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    port: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FakeServer:
    """`will_answer` and `will_stream` line up the answers; `received` holds the requests."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._answers: list[Response] = []
        routes = [Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])]
        self.app = Starlette(routes=routes)
        self.url = ""

    def forget(self) -> None:
        self.received.clear()
        self._answers.clear()

    def will_answer(self, status: int, body: object = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answers.append(Response(content, status, named))

    def will_stream(self, *chunks: bytes) -> None:
        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

        self._answers.append(StreamingResponse(body(), media_type="text/event-stream"))

    async def _answer(self, request: Request) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        assert request.client is not None
        headers, body, port = dict(request.headers), await request.body(), request.client.port
        self.received.append(Received(request.method, target, headers, body, port))
        return self._answers.pop(0)


@pytest.fixture(scope="session")
def running() -> Iterator[FakeServer]:
    fake = FakeServer()
    listening = socket.create_server(("127.0.0.1", 0))  # connections queue here until the server takes them
    fake.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(fake.app, log_level="error", ws="none", lifespan="off", http="h11"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield fake
    server.should_exit = True
    thread.join()


@pytest.fixture
def fake(running: FakeServer) -> FakeServer:
    running.forget()
    return running


@pytest.fixture
def client(fake: FakeServer) -> Iterator[Client]:
    with Client(fake.url, timeout=10) as client:
        yield client


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, fake: FakeServer) -> Ask:
    """Calls one verb of either client, `ask("generate", "e2e", "name : X")`; `stream` gives the list of its events."""

    def ask_sync(verb: str, *args: Any, **kwargs: Any) -> Any:
        with Client(fake.url, timeout=10) as client:
            answer = getattr(client, verb)(*args, **kwargs)
            return list(answer) if verb == "stream" else answer

    async def ask_async(verb: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncClient(fake.url, timeout=10) as client:
            answer = getattr(client, verb)(*args, **kwargs)
            return [event async for event in answer] if verb == "stream" else await answer

    def run_async(verb: str, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run(ask_async(verb, *args, **kwargs))

    return ask_sync if request.param == "sync" else run_async
