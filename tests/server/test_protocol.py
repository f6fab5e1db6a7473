"""Bytes as they come from sockets: what is read as which request, what is refused, and who is not waited for."""

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.protocol import MAX_HEADER_BYTES, DeadlineProtocol, OneWrite
from tests.server.conftest import Running, running
from tests.server.fakes import EchoEngine, Gate
from tests.server.wire import CHUNKED, GET, LENGTH, POST, Read, converse

# -- the same bytes for h11, which is strict where it matters ---------------------------------------------------------


def by_h11(data: bytes) -> list[Read]:
    """The same requests as another parser reads them, until it finds one that it refuses."""
    connection = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
    connection.receive_data(data)
    reads: list[Read] = []
    request, body = None, b""
    with contextlib.suppress(h11.RemoteProtocolError):
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
                version = request.http_version.decode()
                reads.append(Read(request.method.decode(), request.target, version, headers, body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
    return reads


SOUND = [
    GET + b"\r\n",
    GET + b"accept:  */*  \r\nx-empty:\r\n\r\n" + LENGTH + b"\r\nhello" + GET + b"\r\n",
    LENGTH + b"expect: 100-continue\r\n\r\nhello",
    LENGTH + b"connection: Upgrade\r\nUpgrade: h2c\r\n\r\nhello" + GET + b"\r\n",
    CHUNKED + b"5\r\nhello\r\n3;a=b\r\n\r\n!\r\n0\r\n\r\n" + GET + b"\r\n",
    CHUNKED + b"9\r\n\r\n\r\n0\r\n\r\n\r\n0\r\nx-trailer: y\r\n\r\n" + GET + b"\r\n",
    GET + b"connection: close\r\n\r\n",
    b"GET /a%20b?c=d&e HTTP/1.0\r\n\r\n",
]
EDITS = [
    *(bytes([byte]) for byte in b"\0\t\n\r\x0b !#,-/05:;=Ax\x7f\xff"),
    *(
        b"",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\n ",
        b"host: y\r\n",
        b"Content-Length: 6\r\n",
        b"content-length : 6\r\n",
    ),
    *(b"transfer-encoding: chunked\r\n", b"transfer-encoding: x\r\n", b"upgrade: x\r\n", GET, b"0\r\n\r\n"),
]
Edit = tuple[int, int, bytes]


@pytest.mark.parametrize("data", SOUND)
def test_a_sound_request_is_read_as_h11_reads_it_in_whatever_pieces_it_comes(data: bytes) -> None:
    expected = by_h11(data)
    reads, answered = converse(data)
    assert reads == expected != []
    assert converse(*(data[i : i + 1] for i in range(len(data)))) == (reads, answered)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(EDITS)), min_size=1, max_size=3),
    st.lists(st.integers(0, 200), max_size=3),
)
def test_nothing_is_read_but_what_h11_reads_the_same_way(data: bytes, edits: list[Edit], cuts: list[int]) -> None:
    for place, num_dropped, inserted in edits:
        data = data[:place] + inserted + data[place + num_dropped :]
    places = [0, *sorted(cuts), len(data)]
    reads, _ = converse(*(data[begin:end] for begin, end in pairwise(places)))
    assert reads == by_h11(data)[: len(reads)]


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "nothing like it": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\0\x01",
    "an empty line in front": b"\r\n" + GET + b"\r\n",
    "no version": b"GET /ping\r\n\r\n",
    **{
        name: GET.replace(b"HTTP/1.1", name.encode()) + b"\r\n"
        for name in ("HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "RTSP/1.1")
    },
    "ICE": b"SOURCE /ping ICE/1.0\r\nhost: x\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method that nobody knows": GET.replace(b"GET", b"BREW") + b"\r\n",
    "CONNECT": GET.replace(b"GET", b"CONNECT") + b"\r\n",
    "two spaces": GET.replace(b" /", b"  /") + b"\r\n",
    **{
        f"target {name}": GET.replace(b"/ping", name.encode("latin-1")) + b"\r\n"
        for name in ("", "ping", "*", "http://x/ping", "/ping#x", "/p\xff")
    },
    "bare LF": (GET + b"\r\n").replace(b"\r\n", b"\n"),
    "bare LF after a header": GET + b"a: b\nc: d\r\n\r\n",
    "bare LF at the end": GET + b"a: b\r\n\n",
    "bare CR": GET + b"a: b\rc: d\r\n\r\n",
    "a folded header": GET + b"a: b\r\n c\r\n\r\n",
    "a folded upgrade": GET + b"upgrade: b\r\n c\r\n\r\n",
    "a folded length": POST + b"content-length:\r\n 5\r\n\r\nhello",
    "NUL": GET + b"a: b\0c\r\n\r\n",
    "NUL in an upgrade": GET + b"upgrade: b\0c\r\n\r\n",
    "space before a colon": POST + b"content-length : 5\r\n\r\nhello",
    "no host": b"GET /ping HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"host: x\r\n\r\n",
    **{
        f"length {value}": POST + b"content-length: " + value.encode() + b"\r\n\r\nhello"
        for value in ("", "+5", "-5", "0x5", "5, 5", "5 5", "5_0", "5.0", "9" * 20)
    },
    "two lengths": LENGTH + b"content-length: 6\r\n\r\nhello",
    "the same length twice": LENGTH + b"content-length: 5\r\n\r\nhello",
    "length and chunks": LENGTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    **{
        f"coding {value}": POST + b"transfer-encoding: " + value.encode() + b"\r\n\r\n0\r\n\r\n"
        for value in (
            "",
            "gzip",
            "identity",
            "xchunked",
            "gzip, chunked",
            "chunked, gzip",
            "chunked, chunked",
            ",chunked",
            "chunked;q=1",
        )
    },
    "chunks twice": POST + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "identity and chunks": POST + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    **{
        f"chunk {value!r}": CHUNKED + value + b"\r\nhello\r\n0\r\n\r\n"
        for value in (b"", b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5;a\nb", b"5;a\rb", b"1" + b"0" * 16)
    },
    "a chunk that is longer than it says": CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n",
    "bare LF after a chunk's length": CHUNKED + b"5\nhello\r\n0\r\n\r\n",
    "bare LF after a chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "a length in a trailer": CHUNKED + b"0\r\ncontent-length: 5\r\n\r\n",
}


def refusal(answered: bytes) -> tuple[int, str]:
    """Of one answer, which says that it is the last."""
    head, _, body = answered.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert {b"content-type: application/json", b"connection: close", b"content-length: %d" % len(body)} <= set(lines)
    error = json.loads(body)
    assert set(error) == {"error", "error_type"}
    return int(lines[0].split()[1]), error["error_type"]


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_another_parser_could_read_otherwise_is_400_and_no_request(data: bytes) -> None:
    reads, answered = converse(data)
    assert reads == []
    assert refusal(answered) == (400, "bad_request")
    assert converse(*(data[i : i + 1] for i in range(len(data)))) == ([], answered)


def test_a_broken_body_is_no_second_answer() -> None:
    _, answered = converse(CHUNKED, b"5\r\nhelloo\r\n0\r\n\r\n", is_hasty=True)
    assert answered.startswith(b"HTTP/1.1 200")
    assert answered.count(b"HTTP/1.1") == 1


def test_headers_are_read_up_to_their_limit() -> None:
    most = MAX_HEADER_BYTES - len(GET + b"x: \r\n\r\n")
    for num_bytes, status in ((most, b"200"), (most + 1, b"431")):
        assert converse(GET + b"x: " + b"a" * num_bytes + b"\r\n\r\n")[1].startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("begun", "more"),
    [(b"GET /", b"a" * 512), (GET + b"x: ", b"a" * 512), (GET, b"x: " + b"a" * 507 + b"\r\n"), (GET, b"x:\r\n" * 128)],
    ids=["request line", "one header", "headers", "empty headers"],
)
def test_headers_over_the_limit_are_refused_while_they_still_come(begun: bytes, more: bytes) -> None:
    assert converse(begun, *[more] * 31)[1] == b""
    reads, answered = converse(begun, *[more] * 32)
    assert reads == []
    assert refusal(answered) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("begun", "more"),
    [(b"5;", b"a" * 1024), (b"0\r\n", b"x: " + b"a" * 1019 + b"\r\n"), (b"0\r\nx: ", b"a" * 1024), (b"", b"0" * 1024)],
    ids=["extension", "trailers", "one trailer", "zeros"],
)
def test_a_body_is_refused_that_is_hardly_one(begun: bytes, more: bytes) -> None:
    reads, answered = converse(CHUNKED + begun, *[more] * 18)
    assert reads == []
    assert refusal(answered) == (431, "headers_too_large")


# -- who is answered, and who is not waited for -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Running]:
    """In place of the usual one, which has more patience."""
    with running(tmp_path_factory.mktemp("store"), byte_tokenizer, EchoEngine(), header_timeout=0.4) as server:
        yield server


def asked(path: str, version: str = "1.1", **headers: str) -> tuple[bytes, bytes]:
    """The head and the body of a request to generate."""
    body = b'{"inputs": "ab"}'
    fields = {"host": "x", "content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode(), body


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 20)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """What comes up to this end; all of it, where the server closes first."""
    answer = b""
    while not answer.endswith(end) and (piece := connection.recv(65536)):
        answer += piece
    return answer


def is_cut_off(connection: socket.socket, drip: bytes) -> bool:
    """Whether the server ends it, though something comes all the time, after its patience of 0.4 seconds."""
    begun_at = time.monotonic()
    connection.settimeout(0.05)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - begun_at < 10:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(65536):
                    break
            connection.sendall(drip)
    return 0.3 < time.monotonic() - begun_at < 10


def test_a_client_that_waits_with_its_body_is_told_to_go_on(server: Running) -> None:
    head, body = asked("/generate", expect="100-continue")
    with connected(server) as connection:
        connection.sendall(head)
        assert read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200")


def test_a_client_that_waits_with_a_body_that_nobody_wants_is_told_so(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(asked("/nowhere", expect="100-continue")[0])
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("path", ["/nowhere", "/tasks"])
def test_what_follows_a_body_that_was_never_sent_is_not_taken_for_it(server: Running, path: str) -> None:
    """Who is answered before it was told to send its body may leave it away: the connection ends with the answer."""
    with connected(server) as connection:
        connection.sendall(asked(path, expect="100-continue")[0])
        head = read_until(connection, b"}")
        assert b"\r\nconnection: close" in head
        assert connection.recv(1) == b""


def test_an_answer_to_head_has_no_body(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD") + b"\r\n" + GET + b"connection: close\r\n\r\n")
        first, second = read_until(connection, b"no end").split(b"HTTP/1.1 ")[1:]
    assert first.endswith(b"\r\n\r\n")
    assert second.startswith(b"200")


def test_an_answer_to_head_comes_before_the_refusal_of_what_follows_it(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD") + b"\r\nno request\r\n\r\n")
        answers = read_until(connection, b"no end")
    assert [line for line in answers.splitlines() if line.startswith(b"HTTP/")] == [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 400 Bad Request",
    ]


def test_http_1_0_is_answered_without_chunks_and_its_connection_closed(server: Running) -> None:
    for path, end in (("/generate_stream", b"}\n\n"), ("/generate", b"}")):
        with connected(server) as connection:
            connection.sendall(b"".join(asked(path, "1.0", expect="100-continue")))
            head, _, body = read_until(connection, b"no end").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close" in head
        assert b"transfer-encoding" not in head
        assert body.startswith((b"data:", b"{"))
        assert body.endswith(end)


def test_a_protocol_that_is_not_spoken_is_not_changed_to(server: Running) -> None:
    head, body = asked("/generate", connection="Upgrade, HTTP2-Settings, close", upgrade="h2c")
    with connected(server) as connection:
        connection.sendall(head + body)
        assert read_until(connection, b"no end").startswith(b"HTTP/1.1 200")


def test_requests_that_come_together_are_answered_one_after_the_other(start: Callable[..., Running]) -> None:
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    with connected(server) as connection:
        connection.sendall(b"".join(asked("/generate")) + GET + b"\r\n" + GET + b"connection: close\r\n\r\n")
        server.wait_for_open_rows(1)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert not any(each.pipeline for each in server.server.server_state.connections), "who waits is only bytes"
        connection.settimeout(20)
        gate.open()
        answers = read_until(connection, b"no end").split(b"HTTP/1.1 ")
    assert [answer[:3] for answer in answers] == [b"", b"200", b"200", b"200"]
    assert b"generated_text" in answers[1]


def test_a_client_that_closes_its_side_has_left(start: Callable[..., Running]) -> None:
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    with connected(server) as connection:
        connection.sendall(b"".join(asked("/generate")))
        server.wait_for_open_rows(1)
        connection.shutdown(socket.SHUT_WR)
        server.wait_for_open_rows(0)


def test_a_connection_that_has_ended_leaves_nothing_for_the_garbage_collector(start: Callable[..., Running]) -> None:
    """At ten times its load a server held 17 MB of them after a minute."""

    def are_kept() -> int:
        return sum(type(found) in (DeadlineProtocol, RequestResponseCycle) for found in gc.get_objects())

    gate = Gate()
    gate.allow(3)
    server = start(EchoEngine(before_step=gate))
    gc.collect()
    num_before = are_kept()
    gc.disable()
    try:
        with connected(server):
            pass
        with connected(server) as connection:  # answered
            connection.sendall(b"".join(asked("/generate", connection="close")))
            assert read_until(connection, b"no end").startswith(b"HTTP/1.1 200")
        with connected(server) as connection:  # refused
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\n\r\n" + GET + b"connection: close\r\n\r\n")
            read_until(connection, b"no end")
        with connected(server) as connection:  # left before its answer
            connection.sendall(b"".join(asked("/generate_stream")))
            server.wait_for_open_rows(1)
        server.wait_for_open_rows(0)
        deadline = time.monotonic() + 20
        while are_kept() > num_before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()
        gate.open()


def test_a_head_that_began_with_the_request_before_it_has_its_deadline(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(GET + b"\r\n" + GET)
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200")
        assert is_cut_off(connection, b"x")


def test_a_body_that_keeps_coming_after_its_answer_has_a_deadline(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 404")
        assert is_cut_off(connection, b"x")


def test_a_body_that_came_after_its_answer_keeps_the_connection(server: Running) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 404")
        connection.sendall(b"hello")
        connection.settimeout(0.6)
        with pytest.raises(TimeoutError):  # it is longer than the deadline that there was
            connection.recv(1)
        connection.sendall(GET + b"\r\n")
        connection.settimeout(20)
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200")


class Written(asyncio.Transport):
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.pieces.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.pieces


def test_a_head_goes_out_with_its_body_and_alone_where_nothing_follows_at_once() -> None:
    async def write(*pieces: bytes | None) -> list[bytes]:
        """None is a turn of the event loop."""
        written = Written()
        answer = OneWrite(written, asyncio.get_running_loop(), written.close)
        for piece in pieces:
            if piece is None:
                await asyncio.sleep(0)
            else:
                answer.write(piece)
        answer.close()
        return written.pieces

    async def scenario() -> None:
        head, waiting = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await write(head, b"a", b"b", None) == [head + b"a", b"b", b"closed"]
        assert await write(head, None, b"a", None, b"b") == [head, b"a", b"b", b"closed"]
        assert await write(head) == [head, b"closed"]
        assert await write(waiting, head, b"a") == [waiting, head + b"a", b"closed"]

    asyncio.run(scenario())
