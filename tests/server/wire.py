"""A connection without a network, an application that remembers what it read, and bytes to say."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.protocol import DeadlineProtocol, Refuse

GET = b"GET /ping HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /generate HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
LENGTH = POST + b"content-length: 5\r\n"


@dataclass(frozen=True)
class Read:
    """A request as an application gets it."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Application:
    """Remembers what it is asked. A hasty one answers before the body."""

    is_hasty: bool = False
    reads: list[Read] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", not self.is_hasty
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = scope["raw_path"] + query
        self.reads.append(Read(scope["method"], target, scope["http_version"], list(scope["headers"]), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Wire(asyncio.Transport):
    """A connection without a network: what was written to it, and whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_closing:
            self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def refuse_none(scope: Scope, answer: Callable[[Response], None]) -> bool:
    return False


def converse(*pieces: bytes, is_hasty: bool = False, refuse: Refuse = refuse_none) -> tuple[list[Read], bytes]:
    """Which requests are read from these pieces of one connection, and what is answered."""
    application, wire = Application(is_hasty), Wire()

    async def receive_all() -> None:
        config = uvicorn.Config(application, ws="none", lifespan="off", log_config=None, date_header=False)
        protocol = DeadlineProtocol(config, ServerState(), {}, header_timeout=10, reader_timeout=10, refuse=refuse)
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.is_closing():
                protocol.data_received(piece)
            await turns(4)
        await turns(50)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    asyncio.run(receive_all())
    return application.reads, wire.written


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
