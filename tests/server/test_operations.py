"""Health, readiness, facts, metrics and `/tokenize`."""

import asyncio
import io
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from prefix_store.errors import StoreUnavailable
from server.app import Loaded, create_app
from server.log import make_logger
from server.settings import Settings
from tests.server.conftest import Running, loader
from tests.server.fakes import EchoEngine, Gate


def metric(server: Running, name: str) -> float:
    found = re.search(rf"^polyprefix_{re.escape(name)} (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def test_an_idle_server_is_healthy_and_ready(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json() == {"status": "ready"}
    assert server.http.get("/ping").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/"])
def test_who_only_looks_whether_it_is_there_gets_no_body(server: Running, path: str) -> None:
    """As monitors do it."""
    answer = server.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == server.http.get(path).headers["content-length"]


def test_a_store_that_cannot_be_reached_makes_it_degraded(server: Running) -> None:
    def unreachable() -> None:
        raise StoreUnavailable("the disk is gone")

    kept, server.services.store.ping = server.services.store.ping, unreachable  # type: ignore[method-assign]
    answer = server.http.get("/ready")
    server.services.store.ping = kept  # type: ignore[method-assign]
    assert (answer.status_code, answer.json()) == (200, {"status": "degraded"})


def test_a_store_that_says_nothing_makes_it_degraded_and_takes_one_thread(server: Running) -> None:
    released, num_asked = threading.Event(), 0

    def silent() -> None:
        nonlocal num_asked
        num_asked += 1
        released.wait()

    kept, server.services.store.ping = server.services.store.ping, silent  # type: ignore[method-assign]
    try:
        for _ in range(2):
            answer = server.http.get("/ready", timeout=10)
            assert (answer.status_code, answer.json()) == (200, {"status": "degraded"})
    finally:
        server.services.store.ping = kept  # type: ignore[method-assign]
        released.set()
    assert num_asked == 1


def test_info_tells_the_backbone_and_the_limits(server: Running) -> None:
    info = server.http.get("/info").json()
    assert (info["model_id"], info["backbone"], info["fingerprint"]) == ("tiny", "tiny", "f" * 64)
    before = info["num_tasks"]
    for task_id in ("one", "two"):
        server.upload(task_id)
    assert server.http.get("/info").json()["num_tasks"] == before + 2
    assert (info["max_input_length"], info["max_total_tokens"], info["max_best_of"]) == (127, 128, 16)


def test_tokens_are_told_with_their_places(server: Running) -> None:
    answer = server.http.post("/tokenize", json={"inputs": "a b"}).json()
    assert [(token["id"], token["text"], token["start"], token["stop"]) for token in answer] == [
        (97, "a", 0, 1),
        (32, " ", 1, 2),
        (98, "b", 2, 3),
    ]
    assert server.http.post("/tokenize", json={"inputs": "a" * 40_000}).status_code == 422


def test_requests_are_counted_by_route_and_status(server: Running) -> None:
    server.generate("ab")
    server.generate("ab", status=404, task_id="nobody")
    server.http.get("/nowhere/at/all")
    server.http.post("/tasks/nobody/generate", json={"inputs": "a"})
    assert metric(server, 'requests_total{route="/generate",status="200"}') >= 1
    assert metric(server, 'requests_total{route="/generate",status="404"}') == 1
    assert metric(server, 'requests_total{route="unmatched",status="404"}') == 1
    assert metric(server, 'requests_total{route="/tasks/{task_id}/generate",status="404"}') == 1


def test_tokens_steps_and_times_are_counted(start) -> None:  # type: ignore[no-untyped-def]
    server = start()
    server.generate("abc")
    assert metric(server, "prompt_tokens_total") == 3
    assert metric(server, "generated_tokens_total") == 4
    assert metric(server, "steps_total") == 4
    assert metric(server, "mixed_steps_total") == 0
    assert metric(server, "step_rows_sum") == 4
    assert metric(server, "free_slots") == 4
    assert metric(server, "requests_running") == metric(server, "requests_waiting") == 0
    for name in ("time_to_first_token_seconds", "queue_seconds"):
        assert metric(server, f"{name}_count") == 1
    server.upload("poet")
    server.generate("a", task_id="poet")
    assert metric(server, "prefix_cache_prefixes") == 1
    assert metric(server, "prefix_cache_bytes") > 0
    assert metric(server, "prefix_cache_misses_total") == metric(server, "prefix_cache_loads_total") == 1


def test_streams_are_counted_by_how_they_ended(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    gate.allow(1)
    with server.http.stream("POST", "/generate_stream", json={"inputs": "abc"}) as answer:
        next(answer.iter_lines())
    server.wait_for_open_rows(0)
    gate.open()
    for inputs, status in (("ab", 200), ("ab\x07", 200), ("\x07", 424)):  # the last one fails before it is a stream
        assert server.http.post("/generate_stream", json={"inputs": inputs}).status_code == status
    for outcome in ("client_gone", "completed", "error"):
        assert metric(server, f'streams_total{{outcome="{outcome}"}}') == 1


def test_steps_that_hold_rows_of_different_prefixes_are_counted(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    gate.allow(1)
    server.upload("poet")
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.generate, "ab", adapter_id=name) for name in ("poet", "base")]
        server.wait_for_open_rows(2)
        gate.open()
        [each.result() for each in asked]
    assert metric(server, "mixed_steps_total") >= 1
    assert metric(server, 'step_distinct_prefixes_bucket{le="2.0"}') > metric(
        server, 'step_distinct_prefixes_bucket{le="1.0"}'
    )


def test_sizes_may_have_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPREFIX_MAX_UPLOAD_BYTES", "8 MiB")
    settings = Settings(prefix_cache_bytes="1.5GiB", max_json_bytes=1000)
    assert (settings.max_upload_bytes, settings.prefix_cache_bytes, settings.max_json_bytes) == (8 << 20, 3 << 29, 1000)


@pytest.mark.parametrize(("name", "is_told"), [("POLYPREFIX_MAX_NUM_SEQ", True), ("POLYPREFIX_MAX_NUM_SEQS", False)])
def test_a_mistyped_environment_variable_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, byte_tokenizer: Tokenizer, name: str, is_told: bool
) -> None:
    monkeypatch.setenv(name, "8")
    log = io.StringIO()
    app = create_app(Settings(store=tmp_path), loader(byte_tokenizer, EchoEngine()), make_logger(log))

    async def start_and_stop() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start_and_stop())
    assert (f'"names": ["{name}"]' in log.getvalue()) == is_told
    assert ("unknown_settings" in log.getvalue()) == is_told


@pytest.mark.parametrize("is_slow", [True, False])
def test_a_server_that_was_built_without_a_compiler_says_so(
    tmp_path: Path, byte_tokenizer: Tokenizer, is_slow: bool
) -> None:
    """Else somebody would measure it, and believe that."""
    log = io.StringIO()

    def load(settings: Settings) -> Loaded:
        loaded = loader(byte_tokenizer, EchoEngine())(settings)
        return replace(loaded, backbone=replace(loaded.backbone, is_slow=is_slow))

    async def serve() -> None:
        app = create_app(Settings(store=tmp_path), load, make_logger(log))
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(serve())
    assert ('"event": "slow"' in log.getvalue()) == is_slow
