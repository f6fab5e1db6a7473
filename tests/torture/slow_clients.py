"""Clients that write their headers, or read their answers, as slowly as they can.

Knows sockets and HTTP. Knows nothing of what others get meanwhile.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

HEADER_GAP = 2.0  # seconds between two bytes of a header
READ_BYTES, READ_GAP = 512, 0.5


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[socket.socket]:
    """A connection whose receiving side holds hardly anything that was not read."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        yield connection


async def drip_headers(port: int) -> None:
    """Headers that never end, a byte now and then; again when the server has had enough of it, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        async with connected(port) as connection:
            with suppress(ConnectionError):
                await loop.sock_sendall(connection, b"GET /ping HTTP/1.1\r\nx-slow: ")
                while True:
                    await asyncio.sleep(HEADER_GAP)
                    await loop.sock_sendall(connection, b"x")


async def read_slowly(port: int, request: bytes) -> None:
    """One answer, a little at a time."""
    loop = asyncio.get_running_loop()
    async with connected(port) as connection:
        with suppress(ConnectionError):
            await loop.sock_sendall(connection, request)
            more = True
            while more:
                more = bool(await loop.sock_recv(connection, READ_BYTES))
                await asyncio.sleep(READ_GAP)


async def begin_every_second(read: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """One reader more each second, whether or not the ones before have ended, until cancelled."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(read())
            await asyncio.sleep(1)
