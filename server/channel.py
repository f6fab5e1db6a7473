"""Whole messages between the server and its engine's process, over a stream socket: one end waits, one end never does.

Knows bytes and pickles, since each side trusts the other: it is the same program. Knows nothing of what is said, but
that some objects are known to both sides and go over by their numbers.
"""

import asyncio
import io
import pickle
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct("!Q")  # how many bytes the message has
Number = Callable[[object], int | None]  # of an object that the other side knows; None for all others


def has_no_number(_: object) -> None:
    return None


class Channel:
    """The end of whoever has nothing else to do meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()  # `select` knows the first 1,024 descriptors alone
        self._poll.register(sock, select.POLLIN)
        self.known: dict[int, object] = {}  # what comes as its number

    def send(self, message: object) -> None:
        """Raises `OSError` where nobody is left to read it."""
        self._sock.sendall(packed(message))

    def receive(self) -> Any:
        """The next message. Raises `EOFError` where the other side has ended."""
        (num_bytes,) = HEADER.unpack(self._read(HEADER.size))
        unpickler = pickle.Unpickler(io.BytesIO(self._read(num_bytes)))
        unpickler.persistent_load = self.known.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    @property
    def has_message(self) -> bool:
        """Whether `receive` would not wait, or not for long."""
        return bool(self._poll.poll(0))

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray()
        while len(data) < num_bytes:  # a process that is stopped and goes on has a part of what it waited for
            part = self._sock.recv(num_bytes - len(data), socket.MSG_WAITALL)
            if not part:
                raise EOFError
            data += part
        return data


class LoopChannel(asyncio.Protocol):
    """The end on an event loop: `send` returns at once, and `on_message` is called with each message that has come.

    `on_end` is called once, when the other side has ended or the transport was closed.
    """

    def __init__(self, on_message: Callable[[Any], None], on_end: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def send(self, message: object, number_of: Number = has_no_number) -> None:
        """Nothing happens where the other side has ended."""
        if self._transport is not None:
            self._transport.write(packed(message, number_of))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(received)[0]
            if len(received) < end:
                return
            message = pickle.loads(memoryview(received)[HEADER.size : end].tobytes())
            del received[:end]
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_end()


def packed(message: object, number_of: Number = has_no_number) -> bytes:
    data = io.BytesIO()
    pickler = pickle.Pickler(data, pickle.HIGHEST_PROTOCOL)
    pickler.persistent_id = number_of  # type: ignore[method-assign]
    data.seek(HEADER.size)
    pickler.dump(message)
    data.seek(0)
    data.write(HEADER.pack(data.getbuffer().nbytes - HEADER.size))
    return data.getvalue()
