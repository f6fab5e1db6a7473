"""What is refused by its head alone, while that is read."""

import asyncio
from collections.abc import Callable

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.server import ServerState

from server.protocol import DeadlineProtocol
from tests.server.wire import CHUNKED, GET, LENGTH, POST, Application, Wire, converse, turns


def refuse_posts(scope: Scope, answer: Callable[[Response], None]) -> bool:
    if scope["method"] == "POST":
        answer(Response(b"no", 429))
        return True
    return False


NO = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize("post", [LENGTH + b"\r\nhello", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", POST + b"\r\n"])
def test_a_request_refused_by_its_head_leaves_the_connection_to_the_next(post: bytes) -> None:
    data = post + GET + b"\r\n" + post
    reads, answered = converse(*(data[i : i + 1] for i in range(len(data))), refuse=refuse_posts)
    assert [read.method for read in reads] == ["GET"]
    assert answered == NO + OK + NO


def test_of_many_requests_in_one_piece_all_but_the_first_wait_for_turns_of_their_own() -> None:
    post = LENGTH + b"\r\nhello"
    reads, answered = converse(post + post + post, post, refuse=refuse_posts)
    assert [read.method for read in reads] == ["POST", "POST"]  # for the application to refuse
    assert answered == NO + OK + OK + NO


def test_a_refusal_of_head_has_no_body() -> None:
    def refuse(scope: Scope, answer: Callable[[Response], None]) -> bool:
        answer(Response(b"no", 400))
        return True

    head = GET.replace(b"GET", b"HEAD") + b"\r\n"
    assert converse(head, head, refuse=refuse) == ([], 2 * b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n")


def test_a_refusal_leaves_a_reader_that_does_not_read_to_the_application() -> None:
    class Full(Wire):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            super().write(data)
            if not protocol.flow.write_paused:
                protocol.pause_writing()

    async def converse_with_full() -> None:
        nonlocal protocol
        config = uvicorn.Config(Application(), ws="none", lifespan="off", log_config=None, date_header=False)
        protocol = DeadlineProtocol(
            config, ServerState(), {}, header_timeout=10, reader_timeout=10, refuse=refuse_posts
        )
        protocol.connection_made(wire)
        for _ in range(3):
            protocol.data_received(LENGTH + b"\r\nhello")
            await turns(4)
        assert wire.written == NO
        protocol.resume_writing()
        await turns(50)
        assert wire.written.startswith(NO + OK)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    protocol: DeadlineProtocol
    wire = Full()
    asyncio.run(converse_with_full())


def test_who_asked_whether_to_send_a_body_is_not_left_to_guess() -> None:
    """It may have given its body up, and its next request would be taken for it."""
    reads, answered = converse(LENGTH + b"expect: 100-continue\r\n\r\n", GET + b"\r\n", refuse=refuse_posts)
    assert reads == []
    assert answered == NO.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def test_a_connection_that_is_refused_all_the_time_is_neither_cut_nor_kept_for_ever() -> None:
    """Each piece ends within the next head, so that something is always awaited; the last body follows its answer."""

    async def refused() -> None:
        config = uvicorn.Config(
            Application(), ws="none", lifespan="off", log_config=None, date_header=False, timeout_keep_alive=1
        )
        protocol = DeadlineProtocol(
            config, ServerState(), {}, header_timeout=0.3, reader_timeout=10, refuse=refuse_posts
        )
        protocol.connection_made(wire)
        post = POST + b"content-length: 0\r\n\r\n"
        protocol.data_received(post[:20])
        for _ in range(10):
            await asyncio.sleep(0.05)
            protocol.data_received(post[20:] + post[:20])
            assert not wire.is_closing()
        protocol.data_received(post[20:])
        protocol.data_received(LENGTH + b"\r\n")
        await asyncio.sleep(0.05)
        protocol.data_received(b"hello")
        await asyncio.sleep(0.5)
        assert not wire.is_closing()
        await asyncio.sleep(0.7)
        assert wire.is_closing()

    wire = Wire()
    asyncio.run(refused())
    assert wire.written == 12 * NO


@pytest.mark.parametrize(
    "head", [LENGTH + b"connection: close\r\n\r\n", LENGTH.replace(b"/1.1", b"/1.0") + b"\r\n"], ids=["close", "1.0"]
)
def test_a_refusal_ends_a_connection_that_was_to_end(head: bytes) -> None:
    reads, answered = converse(head + b"hello" + GET + b"\r\n", refuse=refuse_posts)
    assert reads == []
    assert answered == NO.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
