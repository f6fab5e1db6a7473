"""What is refused before the router: at once, without the body, and counted under its route."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from server import room
from server.errors import Overloaded
from server.grammar_compiler import Grammar
from server.grammars import GrammarTrial
from tests.server.conftest import Running
from tests.server.fakes import EchoEngine, Gate

Start = Callable[..., Running]

HEAD = b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
QUEUEING = {  # by path, the path of its route
    "/": "/",
    "/generate": "/generate",
    "/generate_stream": "/generate_stream",
    "/tasks/e2e": "/tasks/{task_id}",
    "/tasks/e2e/generate": "/tasks/{task_id}/generate",
    "/tasks/e2e/generate_stream": "/tasks/{task_id}/generate_stream",
    "/score": "/score",
    "/v1/completions": "/v1/completions",
    "/v1/chat/completions": "/v1/chat/completions",
}


def test_there_is_no_room_before_the_body_has_come(start: Start) -> None:
    server = start(drain_notice=20.0)
    server.on_loop(server.services.lifecycle.close)
    for path in QUEUEING:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST " + path.encode() + HEAD)
            assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    counts = server.http.get("/metrics").text
    for route in QUEUEING.values():
        assert f'polyprefix_requests_total{{route="{route}",status="503"}} 1.0' in counts


@pytest.mark.parametrize("path", ["/tokenize", "/tasks/e2e/rollback"])
def test_what_queues_no_rows_needs_no_room(start: Start, path: str) -> None:
    server = start(drain_notice=20.0)
    server.on_loop(server.services.lifecycle.close)
    assert server.http.post(path, json={"inputs": "ab", "version": 1}).status_code in (200, 404)


def test_of_many_requests_at_once_no_more_are_let_in_than_there_is_room_for(start: Start) -> None:
    """The last place is not promised to all who ask before the first of them has come so far as to take it."""
    num_slots, num_waiting = 2, 3
    gate = Gate()
    server = start(EchoEngine(max_num_seqs=num_slots, before_step=gate), max_queued_per_slot=8)
    server.services.engine.room = room.Room(num_slots, num_slots + num_waiting)
    server.http.get("/tasks")  # now it is known that nobody needs a key
    body = json.dumps({"inputs": "ab"}).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with contextlib.ExitStack() as stack:
        asking = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in range(12)
        ]
        for connection in asking:
            connection.sendall(head % len(body))  # and not the body yet: they have no rows
        refused = asking[num_slots + num_waiting :]
        for connection in refused:
            assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")
        assert server.services.metrics.requests.labels("/generate", 429)._value.get() == len(refused)
        for connection in asking:
            connection.sendall(body)
        gate.open()
        for connection in asking[: num_slots + num_waiting]:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    server.wait_for_open_rows(0)


def test_who_does_not_send_its_body_soon_keeps_nobody_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BODY_SECONDS", 0.5)
    server = start(EchoEngine(max_num_seqs=1))
    server.services.engine.room = room.Room(1, 1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        slow.sendall(b"POST /generate" + HEAD)
        server.wait_for_kept_room(1)
        server.wait_for_open_rows(0)
        server.generate("ab")
        slow.sendall(b'{"inputs": "ab"}'.ljust(100))
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
    server.wait_for_open_rows(0)


def test_who_waits_for_its_grammar_has_a_place_in_the_queue(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    is_tried, let_go = threading.Event(), threading.Event()

    async def wait(trial: GrammarTrial, grammar: Grammar) -> None:
        is_tried.set()
        await asyncio.to_thread(let_go.wait, 20)

    monkeypatch.setattr(room, "BODY_SECONDS", 0.0)
    monkeypatch.setattr(GrammarTrial, "check", wait)
    server = start(EchoEngine(max_num_seqs=1))
    server.services.engine.room = room.Room(1, 1)
    asked = {"inputs": "ab", "parameters": {"grammar": {"type": "regex", "value": "ab"}}}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.http.post, "/generate", json=asked)
        assert is_tried.wait(20)
        assert server.http.post("/generate", json=asked, timeout=10).status_code == 429  # before the first goes on
        let_go.set()
        assert first.result().status_code == 200
    server.wait_for_open_rows(0)


def test_a_request_that_is_wrong_gives_its_room_back(start: Start) -> None:
    server = start(EchoEngine(max_num_seqs=1))
    for body in ({"inputs": 1}, {"inputs": "ab", "task_id": "nobodys"}, {"inputs": "a" * 1000}):
        assert server.http.post("/generate", json=body).status_code in (404, 422)
        server.wait_for_open_rows(0)


def test_a_place_that_was_promised_holds_though_others_have_come_in_by_their_right() -> None:
    shared = room.Room(2, 4)
    place = room.Place(shared, "acme")
    place.keep(1)
    shared.take("acme", 3)
    shared.check("other", 1, None)
    shared.take("other", 1)
    shared.check("acme", 1, None, place.num_rows)
    with pytest.raises(Overloaded):
        shared.check("acme", 2, None, place.num_rows)
    place.leave()
    place.leave()
    assert shared.num_rows == 4
