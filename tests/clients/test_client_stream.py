"""Streams: how bytes become events, whatever the chunks; every test that talks runs with both clients."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator

import httpx
import pytest

from clients.client import Client
from clients.errors import ConnectionFailed, GenerationFailed, NotFound, UnexpectedAnswer
from clients.stream import EventDecoder


def event(index: int, text: str, **last: object) -> bytes:
    body = {
        "index": index,
        "token": {"id": index, "text": text, "logprob": -0.5},
        "generated_text": None,
        "details": None,
    }
    return b"data: " + json.dumps(body | last, ensure_ascii=False).encode() + b"\n\n"


DETAILS = {"finish_reason": "eos_token", "generated_tokens": 2, "prompt_tokens": 3, "steps": [7, 9]}
FIRST = event(1, " The")
LAST = event(2, " sea", generated_text=" The sea", details=DETAILS)


def test_a_stream_gives_each_token_and_ends_with_the_text_and_its_details(fake, ask):
    fake.will_stream(FIRST, LAST)
    first, last = ask("stream", "e2e", "x", max_new_tokens=2)
    assert (fake.received[0].method, fake.received[0].target) == ("POST", "/generate_stream")
    assert fake.received[0].json["parameters"] == {"max_new_tokens": 2}
    assert (first.index, first.token.text, first.is_last) == (1, " The", False)
    assert (last.generated_text, last.details.finish_reason, last.details.steps) == (" The sea", "eos_token", (7, 9))


def test_an_event_has_the_most_likely_tokens_at_its_place_when_they_were_asked_for(fake, ask):
    likely = [{"id": 1, "text": " The", "logprob": -0.5}, {"id": 2, "text": " A", "logprob": -1.5}]
    fake.will_stream(event(1, " The", top_tokens=likely), LAST)
    first, last = ask("stream", "e2e", "x", top_n_tokens=2)
    assert [token.text for token in first.top_tokens] == [" The", " A"]
    assert last.top_tokens == ()


def test_chunks_may_end_anywhere(fake, ask):
    whole = event(1, " naïve — 海", generated_text=" naïve — 海")
    fake.will_stream(*(whole[index : index + 1] for index in range(len(whole))))
    (only,) = ask("stream", "e2e", "x")
    assert only.token.text == " naïve — 海"


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\u000b", "\u000c", "\u001c"])
def test_characters_that_end_a_line_elsewhere_stay_in_the_text(character):
    payload = json.dumps({"text": f"a{character}b"}, ensure_ascii=False)
    assert EventDecoder().feed(f"data: {payload}\n\n".encode()) == [payload]


def test_comments_carriage_returns_and_unknown_fields_are_read_as_the_standard_says():
    decoder = EventDecoder()
    sent = b": keep-alive\n\n\nevent: token\r\nid: 4\r\ndata:one\r\ndata: two\r\n\r\n: keep-alive\n\ndata: three\n"
    assert decoder.feed(sent) == ["one\ntwo"]
    assert decoder.feed(b"\n") == ["three"]


def test_keep_alives_are_no_events(fake, ask):
    fake.will_stream(b": keep-alive\n\n", FIRST, b": keep-alive\n\n", LAST)
    assert [event.index for event in ask("stream", "e2e", "x")] == [1, 2]


def test_an_error_in_the_middle_raises_after_the_tokens_before_it(fake, client):
    fake.will_stream(FIRST + b'data: {"error": "not finite", "error_type": "generation"}\n\n')
    events = client.stream("e2e", "x")
    assert next(events).token.text == " The"
    with pytest.raises(GenerationFailed, match="not finite") as caught:
        next(events)
    assert caught.value.status == 424


def test_a_stream_that_stops_early_is_not_taken_for_a_whole_one(fake, ask):
    fake.will_stream(FIRST)
    with pytest.raises(ConnectionFailed, match="broke off"):
        ask("stream", "e2e", "x")


def test_a_refusal_is_raised_before_any_token(fake, ask):
    fake.will_answer(404, {"error": "no task", "error_type": "not_found"})
    with pytest.raises(NotFound):
        ask("stream", "e2e", "x")


def test_a_busy_server_is_asked_again_before_a_stream_begins(fake, ask):
    fake.will_answer(429, {"error": "busy", "error_type": "overloaded"}, retry_after="0")
    fake.will_stream(FIRST, LAST)
    assert len(ask("stream", "e2e", "x")) == 2


@pytest.mark.parametrize("payload", [b"[DONE]", b"{}", b"3", b'{"index": 1, "token": null}'])
def test_an_event_that_is_not_the_contracts_says_what_came(fake, ask, payload):
    fake.will_stream(b"data: " + payload + b"\n\n")
    with pytest.raises(UnexpectedAnswer):
        ask("stream", "e2e", "x")


@pytest.fixture
def _listening_to_ctrl_c():
    """As a process in the foreground does; one that a shell has put in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_listening_to_ctrl_c")
def test_ctrl_c_ends_a_stream_that_has_gone_silent():
    closed = []

    class Silent(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield FIRST
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            closed.append(True)

    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Silent()))
    with pytest.raises(KeyboardInterrupt), Client("http://silent", transport=transport) as client:
        list(client.stream("e2e", "x"))
    assert closed == [True]


def test_leaving_a_stream_early_closes_its_connection():
    closed = threading.Event()

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + FIRST)
            while connection.recv(65536):
                pass
        closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        with Client(f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
            events = client.stream("e2e", "x")
            next(events)
            events.close()
            assert closed.wait(5)
        thread.join()
