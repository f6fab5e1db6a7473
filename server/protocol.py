"""uvicorn's HTTP/1.1 with the deadlines, limits and strictness that it lacks, on one connection.

Knows bytes, timers and where requests begin and end. Knows nothing of routes.

A request's head is parsed once it is whole, and not before the request in front of it was answered. A connection is
closed when a head does not come in time, from its first byte or from the connection's beginning, and when a request
that was answered before its body came keeps sending it. It is cut where its reader takes nothing of what was written,
and where a stream's reader stays behind: what the engine goes on saying would wait for it here.
"""

import asyncio
import contextlib
import fcntl
import json
import re
import termios
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import httptools
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 16 << 10
END_OF_CHUNKS = b"\r\n\r\n"
END_OF_HEAD = re.compile(rb"\n\r?\n")  # what lacks a CR is for llhttp to refuse, at once
# llhttp also reads empty lines before it, more spaces, HTTP/0.9 and 2.0, RTSP and ICE; CONNECT would end HTTP.
REQUEST_LINE = re.compile(rb"(?!CONNECT )[!-~]+ /[!\"$-~]* HTTP/1\.[01]\r\n")
BEGUN_REQUEST_LINE = re.compile(rb"[ -~]*\r?")
# Nothing else is spoken here, which a client must bear (RFC 9110, 7.8); llhttp would leave the body to the other one.
UPGRADE = re.compile(rb"\r\nupgrade:[\t -~\x80-\xff]*", re.IGNORECASE)
OVERSLEPT = 1.0  # seconds by which a timer is late where this process or its machine stood still
INFORMATIONAL = b"HTTP/1.1 1"
CLOSE = (b"connection", b"close")
STREAM = b"\r\ncontent-type: text/event-stream"
ERROR_TYPES = {400: "bad_request", 431: "headers_too_large"}


# Given a request's scope and how to answer it: whether that was done.
Refuse: TypeAlias = Callable[[Any, Callable[[Response], None]], bool]


class Forbidden(Exception):
    """What HTTP/1.1 forbids and llhttp lets through."""


class OneWrite:
    """A transport, for one answer: its head goes out with the first of its body, in one write and not in two.

    Where nothing follows at once the head goes out alone.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        self._head: bytes | None = None
        self._has_begun = False
        self.is_stream = False

    def write(self, data: bytes) -> None:
        if self._has_begun or data.startswith(INFORMATIONAL):
            self._transport.write(self._take_head() + data)
        else:
            self._has_begun, self._head = True, data
            self.is_stream = STREAM in data
            self._loop.call_soon(self.flush)

    def close(self) -> None:
        self.flush()
        self._close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def flush(self) -> None:
        head = self._take_head()
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def _take_head(self) -> bytes:
        head, self._head = self._head or b"", None
        return head


class DeadlineProtocol(HttpToolsProtocol):
    """Made by uvicorn, one for each connection, with three things beside its own arguments.

    `header_timeout` is in seconds, and so is `reader_timeout`: within which a reader must take some of what waits for
    it, and of a stream so much that less than 64 KiB wait. `refuse` is shown each request's head, and may answer it
    before the application.
    """

    def __init__(
        self, *arguments: Any, header_timeout: float, reader_timeout: float, refuse: Refuse, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._header_timeout = header_timeout
        self._reader_timeout = reader_timeout
        self._next_look: asyncio.TimerHandle | None = None  # at what the reader has taken
        self._behind: asyncio.TimerHandle | None = None  # at whether a stream's reader still is
        self._refuse_by_head = refuse
        self._may_refuse_by_head = False
        self._answer: OneWrite | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._unread = bytearray()
        self._num_body_bytes: int | None = 0  # still to come; None where the body is chunked
        self._num_framing_bytes = 0  # since the last byte of a chunked body: lengths, extensions, trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._forget_reader()
        super().connection_lost(exc)
        # They hold this protocol, which holds them: a connection would be garbage that only a collection finds.
        self.cycle = self._answer = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()  # 64 KiB wait
        self._watch_reader()
        if self._answer is not None and self._answer.is_stream:
            self._give_time_to_catch_up()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reader()
        if self.transport.is_closing():
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def eof_received(self) -> None:
        self._close()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._watch_reader()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._may_refuse_by_head = True
        self._unread += data
        self._read()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._num_body_bytes == 0:  # else it is a trailer, which nobody reads
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._num_body_bytes = self._body_length()
        self._num_framing_bytes = 0
        self._unset_keepalive_if_required()  # the head may have waited, and its connection have been idle since
        self._clear_deadline()
        self.scope["state"]["arrived_at"] = time.monotonic()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_body_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._answer is not None:  # None where the client has left
            self._answer.flush()  # an answer to HEAD has no body
        super().on_response_complete()
        if not self.transport.is_closing():
            self._read()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.transport = self._answer = OneWrite(self.transport, self.loop, self._close)  # type: ignore[assignment]
        if self._may_refuse_by_head and not self.flow.write_paused:
            # Once for what has come: of many requests in one piece the others wait for a turn of their own.
            self._may_refuse_by_head = False
            if self._refuse_by_head(cycle.scope, partial(self._answer_at_once, cycle)):
                return
        if cycle.scope["http_version"] == "1.0":
            app = partial(_unchunked, app, cycle)
        elif cycle.waiting_for_100_continue:
            app = partial(_closed_unless_told_to_send, app, cycle)
        super()._start_asgi_task(cycle, app)

    def _answer_at_once(self, cycle: RequestResponseCycle, response: Response) -> None:
        """In one write, while the request's head is being parsed; its body, if one comes, is read for nothing."""
        headers = [*self.server_state.default_headers, *response.raw_headers]
        body = b"" if cycle.scope["method"] == "HEAD" else bytes(response.body)
        # Who asked whether to send its body may send none now, and what came next would be taken for it.
        is_unsure = cycle.waiting_for_100_continue and self._num_body_bytes != 0
        is_last = is_unsure or not cycle.keep_alive or CLOSE in headers
        if is_last and CLOSE not in headers:
            headers.append(CLOSE)
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], head, body))
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = lambda: None  # as uvicorn does at the end: it holds this protocol, which holds it
        if is_last:
            self._close()
        super().on_response_complete()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read(self) -> None:
        """Parse what has come, and see to it that what has not will not be waited for too long."""
        while self._unread and not self.transport.is_closing() and (part := self._next_part()):
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserError as error:
                reason = error.__context__ if isinstance(error.__context__, Forbidden) else error
                self._refuse(400, f"this is not HTTP/1.1: {reason}")
        if self._is_answering:
            self._clear_deadline()  # from here on the body has its own
        elif self._unread or self._num_body_bytes != 0:
            self._set_deadline()
        elif self.cycle is not None:
            self._clear_deadline()
            if self.timeout_keep_alive_task is None:  # the body has come after its answer
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def _next_part(self) -> bytes:
        """Take what can be parsed: a whole head, or what is there of a body; never anything of the next request."""
        if self._num_body_bytes is None:
            return self._take(self._size_of_chunks())
        if self._num_body_bytes > 0:
            part = self._take(self._num_body_bytes)
            self._num_body_bytes -= len(part)
            return part
        if self._is_answering:
            if len(self._unread) > MAX_HEADER_BYTES:  # else who leaves would not be noticed
                self.flow.pause_reading()
            return b""
        return UPGRADE.sub(b"", self._take(self._size_of_head()))

    def _take(self, size: int) -> bytes:
        part = bytes(self._unread[:size])
        del self._unread[:size]
        return part

    def _size_of_head(self) -> int:
        """Zero until it is whole."""
        if not (REQUEST_LINE.match(self._unread) or BEGUN_REQUEST_LINE.fullmatch(self._unread)):
            self._refuse(400, "this is not HTTP/1.1: it does not begin with a request line")
            return 0
        end = END_OF_HEAD.search(self._unread, 0, MAX_HEADER_BYTES)
        if end is None and len(self._unread) >= MAX_HEADER_BYTES:
            self._refuse(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes")
        return 0 if end is None else end.end()

    def _size_of_chunks(self) -> int:
        """Up to where the body may end, but for what may be the beginning of that."""
        if self._num_framing_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"there are more than {MAX_HEADER_BYTES} bytes between two of the body's")
            return 0
        end = self._unread.find(END_OF_CHUNKS)
        size = max(len(self._unread) - len(END_OF_CHUNKS) + 1, 0) if end < 0 else end + len(END_OF_CHUNKS)
        self._num_framing_bytes += size
        return size

    def _body_length(self) -> int | None:
        """By the request's headers, None where it is chunked. Raises `Forbidden`."""
        names = [name for name, _ in self.headers]
        is_old = self.parser.get_http_version() == "1.0"
        if names.count(b"host") != 1 and not (is_old and b"host" not in names):
            raise Forbidden("there must be one Host header")
        fields = dict(self.headers)
        if b"transfer-encoding" not in fields:
            return int(fields.get(b"content-length", b"0"))
        if is_old or names.count(b"transfer-encoding") > 1 or fields[b"transfer-encoding"].lower() != b"chunked":
            raise Forbidden("Transfer-Encoding can only be chunked")
        return None

    def _refuse(self, status: int, reason: str) -> None:
        """Say so, unless an answer has begun already, and close."""
        if self._num_body_bytes != 0 and self.cycle.response_started:
            self.transport.abort()
            return
        body = json.dumps({"error": reason, "error_type": ERROR_TYPES[status]}).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self._close()

    def _set_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._header_timeout, self._cut)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _close(self) -> None:
        """Once what was written has been read, which is not waited for for ever."""
        if not self.transport.is_closing():
            self.transport.close()
            self._watch_reader()

    def _watch_reader(self) -> None:
        if self._next_look is None and self.transport.get_write_buffer_size() > 0:
            self._next_look = self.loop.call_later(self._reader_timeout, self._look_at_reader, self._num_untaken_bytes)

    @property
    def _num_untaken_bytes(self) -> int:
        """That were written, and that the reader's machine has not acknowledged: here, and in the system's buffer.

        The latter asks for more only when a third of it is free, which a slow reader needs a minute for.
        """
        in_kernel = array("i", [0])
        with contextlib.suppress(OSError):  # no Linux: what waits here must do
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self.transport.get_write_buffer_size() + in_kernel[0]

    def _forget_reader(self) -> None:
        for look in (self._next_look, self._behind):
            if look is not None:
                look.cancel()
        self._next_look = self._behind = None

    def _give_time_to_catch_up(self) -> None:
        self._behind = self.loop.call_later(self._reader_timeout, self._look_whether_behind)

    def _look_whether_behind(self) -> None:
        assert self._behind is not None, "who looks was called by it"
        if self.loop.time() - self._behind.when() < OVERSLEPT:
            self.transport.abort()
        else:
            self._give_time_to_catch_up()

    def _look_at_reader(self, num_untaken_before: int) -> None:
        assert self._next_look is not None, "who looks was called by it"
        overslept = self.loop.time() - self._next_look.when()
        self._next_look = None
        if self._num_untaken_bytes >= num_untaken_before and overslept < OVERSLEPT:
            self.transport.abort()
        else:
            self._watch_reader()


async def _closed_unless_told_to_send(
    app: ASGIApp, cycle: RequestResponseCycle, scope: Scope, receive: Receive, send: Send
) -> None:
    """Who asked whether to send its body, and is answered instead, may send none or all the same: what came next would
    be taken for it."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start" and cycle.waiting_for_100_continue:
            message = {**message, "headers": [*message["headers"], CLOSE]}
        await send(message)

    await app(scope, receive, send_and_close)


async def _unchunked(app: ASGIApp, cycle: RequestResponseCycle, scope: Scope, receive: Receive, send: Send) -> None:
    """HTTP/1.0 has neither 100 nor chunks: an answer that does not tell its length ends with its connection."""
    tells_length = True
    cycle.waiting_for_100_continue = False

    async def send_unchunked(message: Message) -> None:
        nonlocal tells_length
        if message["type"] == "http.response.start":
            tells_length = any(name == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if tells_length else False
        elif not tells_length:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_unchunked)
