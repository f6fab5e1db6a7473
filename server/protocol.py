"""uvicorn's HTTP/1.1 with the deadlines and limits that it lacks, on one connection.

Knows bytes, timers and h11's states. Knows nothing of routes.

A connection is closed when a request's headers do not come in time, from its first byte or from the connection's
beginning, and when a request that was answered before its body came keeps sending it.
"""

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

MAX_HEADER_BYTES = 16 << 10
# h11 compares with its limit only when it needs more: fed in small pieces, headers cannot be far over it.
PIECE_BYTES = 1 << 10
REFUSALS = {
    431: {"error": f"the headers are larger than {MAX_HEADER_BYTES} bytes", "error_type": "headers_too_large"},
    400: {"error": "this is not HTTP/1.1", "error_type": "bad_request"},
}


class DeadlineProtocol(H11Protocol):
    """Made by uvicorn, one for each connection, with `header_timeout` in seconds beside its own arguments."""

    def __init__(self, *arguments: Any, header_timeout: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timeout = header_timeout
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            num_bytes = PIECE_BYTES if self.conn.their_state is h11.IDLE else len(data)
            self._receive(data[:num_bytes])
            data = data[num_bytes:]

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # answered early: what is still to come is not waited for long
            self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        """As JSON, with the status that h11 has for what it could not read; called while its error is handled."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # an answer has begun: nothing else can be said
            return
        hint = getattr(sys.exception(), "error_status_hint", 400)
        status = hint if hint in REFUSALS else 400
        body = json.dumps(REFUSALS[status]).encode()
        headers = [("content-type", "application/json"), ("connection", "close"), ("content-length", str(len(body)))]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _receive(self, piece: bytes) -> None:
        super().data_received(piece)
        if self.cycle is None or self.cycle.response_complete:
            self._set_deadline()
        else:
            self._clear_deadline()  # the headers are there; from here on the body has its own deadline

    def _set_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._header_timeout, self._close)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        self.transport.abort()
