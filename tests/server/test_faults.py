"""What happens when clients leave, queues fill, deadlines pass and the engine dies."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from prefix_store.store import PrefixStore
from prefix_store.tasks import Served
from server.cli import run
from server.errors import Unavailable
from server.settings import Settings
from tests.server.conftest import Running, loader
from tests.server.disconnects import HeldEngine
from tests.server.fakes import EchoEngine, Gate
from tests.server.test_generate import events_of
from tests.server.test_operations import metric

Start = Callable[..., Running]


def held(start: Start, **settings: float) -> tuple[Running, Gate]:
    """A server whose engine stands still until the test lets it go on."""
    gate = Gate()
    return start(EchoEngine(before_step=gate), **settings), gate


def ask(server: Running, path: str, inputs: str) -> socket.socket:
    """Send a request and do not wait for its answer."""
    body = f'{{"inputs": "{inputs}"}}'.encode()
    connection = socket.create_connection(("127.0.0.1", server.port), 20)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def assert_all_is_free(server: Running, gate: Gate) -> None:
    """Let the engine take one more turn, and see that nothing is left in it."""
    server.wait_for_open_rows(0)
    gate.allow(1)
    assert server.engine.has_aborted.wait(20)
    gate.open()
    assert server.generate("x")["generated_text"] == "x"
    assert server.engine.num_free_slots == server.engine.max_num_seqs
    server.wait_for_open_rows(0)


def test_a_client_that_leaves_with_more_requests_on_their_way_is_noticed_at_once(start: Start) -> None:
    server, gate = held(start)
    gate.allow(1)
    connection = ask(server, "/generate", "a long text")
    server.wait_for_open_rows(1)
    connection.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\n")
    connection.close()
    assert_all_is_free(server, gate)


def test_a_client_that_leaves_a_stream_frees_its_slot(start: Start) -> None:
    server, gate = held(start)
    gate.allow(2)
    with server.http.stream("POST", "/generate_stream", json={"inputs": "a long text"}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.wait_for_open_rows(1)
    assert_all_is_free(server, gate)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_before_the_first_token_frees_its_slot(start: Start, path: str) -> None:
    server, gate = held(start)
    connection = ask(server, path, "a long text")
    server.wait_for_open_rows(1)
    connection.close()
    assert_all_is_free(server, gate)


def test_a_client_that_leaves_while_it_is_queued_is_forgotten(start: Start) -> None:
    server, gate = held(start)
    server.engine.max_num_seqs = 1
    connections = [ask(server, "/generate", "ab"), ask(server, "/generate", "cd")]
    server.wait_for_open_rows(2)
    for connection in connections:
        connection.close()
    assert_all_is_free(server, gate)


def test_a_full_queue_is_429_with_retry_after(start: Start) -> None:
    server, gate = held(start, max_queued_per_slot=1)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.generate, "ab") for _ in range(8)]
        server.wait_for_open_rows(8)
        refused = server.http.post("/generate", json={"inputs": "ab"})
        assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert server.http.put("/tasks/late", content=b"x").status_code == 429
        gate.open()
        assert {each.result()["generated_text"] for each in asked} == {"ab"}
    assert "this tenant may have 8" in server.generate("ab", best_of=9, do_sample=True, status=422)["error"]


def test_a_wait_in_the_queue_that_is_too_long_is_504(start: Start) -> None:
    server, gate = held(start, queue_timeout=0.1)
    error = server.generate("ab", status=504)
    assert error["error_type"] == "deadline"
    assert "waited longer than 0.1 s" in error["error"]
    assert_all_is_free(server, gate)


def test_a_beam_search_waits_in_the_queue_no_longer_than_others_and_runs_on_once_it_has_its_slots(
    start: Start, tiny_model: Path
) -> None:
    engine = HeldEngine(tiny_model, max_num_seqs=2)
    server = start(engine, queue_timeout=0.3)
    body = {"inputs": "ab", "parameters": {"num_beams": 2, "max_new_tokens": 8, "min_new_tokens": 8}}
    engine.before_step.allow(1)
    with ThreadPoolExecutor(1) as pool:
        admitted = pool.submit(server.http.post, "/generate", json=body)
        engine.before_step.wait_until_held()
        queued = server.http.post("/generate", json=body)  # while the first one has the slots, and longer than 0.3 s
        assert (queued.status_code, queued.json()["error_type"]) == (504, "deadline")
        assert "waited longer than 0.3 s" in queued.json()["error"]
        engine.before_step.open()
        assert admitted.result().status_code == 200
    assert metric(server, "queue_seconds_count") == metric(server, "time_to_first_token_seconds_count") == 1


def test_a_request_that_takes_too_long_is_504_or_ends_its_stream(start: Start) -> None:
    server, gate = held(start, request_timeout=0.3)
    gate.allow(2)
    events = events_of(server.http.post("/generate_stream", json={"inputs": "abc"}).text)
    assert [event.get("error_type") for event in events] == [None] * (len(events) - 1) + ["deadline"]
    assert server.generate("ab", status=504)["error_type"] == "deadline"
    assert_all_is_free(server, gate)


def test_a_store_that_is_slow_holds_up_who_needs_it_and_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More at once than the pool has threads that all else uses."""
    server = start(queue_timeout=2)
    server.upload("cold")
    num_asking, is_back = 12, threading.Event()
    monkeypatch.setattr(PrefixStore, "cached", lambda *_: None)
    read = PrefixStore.get

    def slow(*arguments: Any) -> Served:
        is_back.wait(20)
        return read(*arguments)

    monkeypatch.setattr(PrefixStore, "get", slow)
    with ThreadPoolExecutor(num_asking) as pool:
        asking = [
            pool.submit(server.http.post, "/generate", json={"inputs": "x", "task_id": "cold"})
            for _ in range(num_asking)
        ]
        asked_at = time.monotonic()
        assert server.http.get("/info").status_code == 200
        assert server.generate("x", details=True)["generated_text"] == "x"
        assert time.monotonic() - asked_at < 2
        answers = [each.result() for each in asking]
        is_back.set()
    assert {(answer.status_code, answer.json()["error_type"]) for answer in answers} == {(504, "deadline")}
    assert server.generate("ab", task_id="cold")["task_id"] == "cold", "it is read for the next"


def test_a_stream_that_waits_gets_keep_alive_comments(start: Start) -> None:
    server, gate = held(start, keep_alive_interval=0.05)
    gate.allow(1)
    with server.http.stream("POST", "/generate_stream", json={"inputs": "ab"}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        assert [next(lines), next(lines)] == ["", ": keep-alive"]
        gate.open()
        assert events_of("\n".join(lines))[-1]["generated_text"] == "ab"


def test_an_upload_whose_client_leaves_publishes_nothing(start: Start) -> None:
    server, gate = held(start)
    body = b'{"text": "be brief"}'
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        head = f"PUT /tasks/left HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        server.wait_for_open_rows(1)
    assert_all_is_free(server, gate)
    assert server.http.get("/tasks/left").status_code == 404


class Dies(Exception):
    """What a broken device raises."""


def test_a_dead_engine_is_unhealthy_and_every_request_ends_with_an_error(start: Start) -> None:
    server, gate = held(start)
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(server.http.post, path, json={"inputs": "ab"}) for path in ("/generate", "/generate_stream")
        ]
        server.wait_for_open_rows(2)

        def die() -> None:
            raise Dies("device lost")

        server.engine.before_step = die
        gate.open()
        for answer in (each.result() for each in asked):
            if answer.status_code == 200:  # it had its first token already
                assert events_of(answer.text)[-1]["error_type"] == "unavailable"
            else:
                assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    health = server.http.get("/health")
    assert (health.status_code, health.json()["error"]) == (503, "the engine died: Dies: device lost")
    assert server.http.get("/ready").status_code == 503
    assert server.generate("ab", status=503)["error_type"] == "unavailable"
    assert server.services.lifecycle.exit_code != 0


def test_a_step_that_hangs_is_noticed_and_ends_the_server(start: Start) -> None:
    server, gate = held(start, engine_stall_timeout=0.2)
    answer = server.http.post("/generate", json={"inputs": "ab"})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    assert server.http.get("/health").status_code == 503
    assert server.services.lifecycle.exit_code != 0
    gate.open()


def test_an_idle_or_busy_engine_stays_healthy(start: Start) -> None:
    server = start(engine_stall_timeout=0.2)
    idle = threading.Event()
    idle.wait(0.5)
    assert server.generate("ab")["generated_text"] == "ab"
    assert server.http.get("/health").status_code == 200


def test_a_draining_server_is_unready_and_still_takes_what_balancers_send_that_have_not_seen_it(start: Start) -> None:
    server = start(drain_notice=20.0)
    server.on_loop(server.services.lifecycle.drain, lambda: None)
    while server.http.get("/ready").status_code != 503:
        pass
    assert server.generate("ab")["generated_text"] == "ab"


def test_after_the_notice_a_draining_server_refuses_new_work_and_lets_the_old_end(start: Start) -> None:
    server, gate = held(start, drain_notice=20.0, drain_timeout=20)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.generate, "ab")
        gate.wait_until_held()
        server.on_loop(server.services.lifecycle.drain, lambda: None)
        server.on_loop(server.services.lifecycle.close)  # as when the notice has passed, and still listening
        while not server.services.lifecycle.is_closed:
            pass
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200
        refused = server.http.post("/generate", json={"inputs": "ab"})
        assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert server.http.put("/tasks/late", content=b"x").status_code == 503
        gate.open()
        assert asked.result()["generated_text"] == "ab"


def test_what_is_left_when_the_drain_is_over_ends_with_an_error(start: Start) -> None:
    server, gate = held(start, drain_notice=0.0, drain_timeout=0.3)
    gate.allow(1)
    with server.http.stream("POST", "/generate_stream", json={"inputs": "ab"}) as answer:
        lines = answer.iter_lines()
        next(lines)
        fail_all = server.services.engine.fail_all
        server.on_loop(server.services.lifecycle.drain, lambda: fail_all(Unavailable("shutting down")))
        assert events_of("\n".join(lines)) == [{"error": "shutting down", "error_type": "unavailable"}]
    gate.open()


def test_a_drain_that_is_shorter_than_its_notice_takes_nothing_that_it_would_not_answer(start: Start) -> None:
    server, gate = held(start, drain_notice=20.0, drain_timeout=0.1)
    server.on_loop(server.services.lifecycle.drain, lambda: None)
    time.sleep(0.5)
    with pytest.raises(httpx.ConnectError):
        server.http.post("/generate", json={"inputs": "ab"})
    gate.open()


def ask_for_much(server: Running, connection: socket.socket) -> None:
    """A stream of more than any buffer on the way holds; this end's is small."""
    body = json.dumps({"inputs": "a" * 30_000, "parameters": {"top_n_tokens": 20, "max_new_tokens": 30_000}}).encode()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(b"POST /generate_stream HTTP/1.1\r\nhost: x\r\n" + head.encode() + body)


def test_a_reader_that_takes_nothing_is_given_up(start: Start) -> None:
    gate = Gate()
    gate.allow(5_000)  # more than any buffer on the way holds, and less than the whole answer
    server = start(EchoEngine(max_model_len=100_000, before_step=gate), reader_stall_timeout=0.2)
    with socket.socket() as connection:
        ask_for_much(server, connection)
        server.wait_for_open_rows(1)
        server.wait_for_open_rows(0)
        gate.open()
        assert server.engine.has_aborted.wait(20)
        wait_until_connections_are(server, set())
        assert server.generate("ab")["generated_text"] == "ab"


def test_a_reader_of_a_stream_that_stays_behind_is_given_up_though_it_takes_some(start: Start) -> None:
    server = start(EchoEngine(max_model_len=100_000), reader_stall_timeout=1)
    with socket.socket() as connection:
        ask_for_much(server, connection)
        server.wait_for_open_rows(1)
        deadline = time.monotonic() + 20
        while server.server.server_state.connections:
            assert time.monotonic() < deadline, "a connection is kept for who stays behind"
            assert connection.recv(2_000), "what waits in the system's buffers lasts longer than that"
            time.sleep(0.02)
    server.wait_for_open_rows(0)
    assert metric(server, 'streams_total{outcome="client_gone"}') == 1


def test_a_reader_of_whole_answers_that_takes_nothing_is_cut_too_and_a_slow_one_is_not(start: Start) -> None:
    server = start(reader_stall_timeout=1)
    ask = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n"
    asked = (ask + b"\r\n") * 99 + ask + b"connection: close\r\n\r\n"
    size = len(server.http.get("/openapi.json").content)
    idle = set(server.server.server_state.connections)
    with socket.socket() as slow, socket.socket() as stalled, socket.socket() as left:
        for connection in (slow, stalled, left):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(asked)
        left.shutdown(socket.SHUT_WR)
        received, ends_at = 0, time.monotonic() + 4
        while time.monotonic() < ends_at:  # four times as long as a reader may take nothing
            received += len(slow.recv(100_000))
            time.sleep(0.02)
        slow.settimeout(20)
        while piece := slow.recv(1 << 20):
            received += len(piece)
        assert received > 100 * size
        wait_until_connections_are(server, idle)


def wait_until_connections_are(server: Running, expected: set[object]) -> None:
    deadline = time.monotonic() + 20
    while not set(server.server.server_state.connections) <= expected:
        assert time.monotonic() < deadline, "a connection is kept for who does not read"
        time.sleep(0.01)


@pytest.mark.parametrize("fault", [Dies("device lost"), None], ids=["dies", "hangs"])
def test_a_broken_engine_ends_the_process_with_an_error(
    tmp_path: Path, byte_tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], fault: Dies | None
) -> None:
    let_go = threading.Event()

    def break_down() -> None:
        if fault is not None:
            raise fault
        let_go.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(store=tmp_path, port=port, engine_stall_timeout=0.2)
    load = loader(byte_tokenizer, EchoEngine(before_step=break_down))

    async def ask_and_run() -> tuple[int, httpx.Response]:
        running = asyncio.create_task(run(settings, load))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.AsyncHTTPTransport(retries=10)
        ) as http:
            answer = await http.post("/generate", json={"inputs": "ab"})
        return await running, answer

    exit_code, answer = asyncio.run(ask_and_run())
    let_go.set()
    assert exit_code == 1
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    assert capsys.readouterr().out == f"http://127.0.0.1:{port}\n"
