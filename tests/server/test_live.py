"""The live view: what it tells of the steps, to whom, and that nobody who watches costs the others anything."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from prefix_store.tenants import Scope, Tenant
from server.live import MAX_STEPS, MAX_WATCHERS_OF_TENANT
from server.live_view import percentiles
from tests.server.conftest import Guarded, Running, prefix_file
from tests.server.fakes import EchoEngine, Gate

ACME, OTHER = Tenant(name="acme"), Tenant(name="other")


@contextmanager
def watched(server: Running, headers: dict[str, str] | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    with server.http.stream("GET", "/live", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        yield (json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line)


def first_event(server: Running, headers: dict[str, str] | None = None) -> dict[str, Any]:
    with watched(server, headers) as events:
        return next(events)


def until(events: Iterator[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return next(event for event in events if holds(event))


@pytest.fixture
def house(start_guarded: Callable[..., Guarded]) -> Guarded:
    """acme has the task `secret`, other has `poet`; each has run one request."""
    house = start_guarded(ACME, OTHER)
    for tenant, task in (("acme", "secret"), ("other", "poet")):
        house.ask(f"{tenant}/tasks", "PUT", f"/tasks/{task}", content=prefix_file())
        asked = house.ask(f"{tenant}/generate", "POST", "/generate", json={"inputs": "ab", "task_id": task})
        assert asked.status_code == 200
    return house


def test_it_ends_as_long_after_as_any_request_would(start: Callable[..., Running]) -> None:
    """So that a replica which is to be replaced has none for ever; who watches asks again, and gets what is new."""
    server = start(request_timeout=0.3)
    with watched(server) as events:
        seen = list(events)
    assert len({event["server"] for event in seen}) == 1
    assert first_event(server)["server"] == seen[0]["server"]


def test_each_steps_rows_are_told_with_slot_and_task(start: Callable[..., Running]) -> None:
    server = start()
    server.upload("poet")
    server.generate("ab", task_id="poet", max_new_tokens=2)
    event = first_event(server)
    assert event["owners"] == [{"tenant": "default", "task_id": "poet"}]
    trial, first, second = event["steps"]
    assert trial["rows"] == [[0, -1, 1]]  # of the upload: nobody's row
    assert (first["rows"], second["rows"]) == ([[0, 0, 1]], [[0, 0, 0]])
    assert [trial["tokens"], first["tokens"], second["tokens"]] == [1, 1, 1]
    assert second["step"] == first["step"] + 1
    assert event["num_slots"] == 4
    assert event["cache"]["prefixes"] == 1
    assert len(event["first_token"]) == len(event["gap"]) == 3


def test_an_event_tells_only_what_is_new_and_one_comes_for_every_change(start: Callable[..., Running]) -> None:
    server = start()
    server.generate("a", max_new_tokens=1)
    with watched(server) as events:
        assert [step["step"] for step in next(events)["steps"]] == [1]
        server.generate("a", max_new_tokens=1)
        assert [step["step"] for step in until(events, lambda event: event["steps"])["steps"]] == [2]


def test_a_watcher_that_was_away_gets_the_latest_steps_and_no_more(start: Callable[..., Running]) -> None:
    server = start()
    for _ in range(MAX_STEPS // 60 + 1):
        server.generate("a" * 60, max_new_tokens=60)
    assert server.engine.num_steps > MAX_STEPS
    event = first_event(server)
    assert [step["step"] for step in event["steps"]] == list(
        range(server.engine.num_steps - MAX_STEPS + 1, server.engine.num_steps + 1)
    )


def test_the_queue_is_told_by_tenant(start: Callable[..., Running]) -> None:
    gate = Gate()
    server = start(EchoEngine(max_num_seqs=1, before_step=gate))
    gate.allow(1)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.generate, "ab") for _ in range(3)]
        server.wait_for_open_rows(3)
        with watched(server) as events:
            event = until(events, lambda event: event["steps"])
            assert event["waiting"] == [{"tenant": "default", "requests": 2}]
            gate.open()
            assert until(events, lambda event: not event["waiting"])
        [each.result() for each in asked]


def test_a_tenant_sees_its_own_tasks_by_name_and_nothing_of_anothers(house: Guarded) -> None:
    event = first_event(house.server, house.headers("other/generate"))
    assert event["owners"] == [{"tenant": "other", "task_id": "poet"}]
    owners = [row[1] for step in event["steps"] for row in step["rows"]]
    assert owners.count(-1) > owners.count(0) > 0  # acme's rows are there, without a name
    assert event["cache"] is None
    assert "acme" not in json.dumps(event)
    assert "secret" not in json.dumps(event)


def test_an_operator_sees_everybodys_tasks_by_name(house: Guarded) -> None:
    event = first_event(house.server, house.headers("other/operator"))
    assert event["owners"] == [{"tenant": "acme", "task_id": "secret"}, {"tenant": "other", "task_id": "poet"}]
    assert event["cache"]["prefixes"] == 2


def test_others_in_the_queue_are_one_number_without_names(start_guarded: Callable[..., Guarded]) -> None:
    gate = Gate()
    house = start_guarded(ACME, OTHER, engine=EchoEngine(max_num_seqs=1, before_step=gate))
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(house.ask, f"{tenant}/generate", "POST", "/generate", json={"inputs": "ab"})
            for tenant in ("acme", "acme", "other")
        ]
        house.server.wait_for_open_rows(3)
        seen = first_event(house.server, house.headers("other/generate"))["waiting"]
        assert seen == [{"tenant": "other", "requests": 1}, {"tenant": None, "requests": 2}]
        gate.open()
        [each.result() for each in asked]


def test_a_key_that_is_revoked_watches_no_longer(house: Guarded) -> None:
    tenants = house.server.services.store.tenants
    key, secret = tenants.create_key("acme", [Scope.GENERATE])
    with watched(house.server, {"authorization": f"Bearer {secret}"}) as events:
        next(events)
        tenants.revoke_key(key.key_id)
        last = until(events, lambda event: "error" in event)
        assert last["error_type"] == "unauthorized"
        assert list(events) == []


def test_a_tenant_watches_only_so_many_times_and_a_watcher_that_leaves_makes_room(house: Guarded) -> None:
    headers, http = house.headers("acme/generate"), house.server.http
    requests = [http.build_request("GET", "/live", headers=headers) for _ in range(MAX_WATCHERS_OF_TENANT)]
    watching = [http.send(request, stream=True) for request in requests]
    refused = http.get("/live", headers=headers)
    assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limited")
    assert house.ask("other/generate", "GET", "/tasks").status_code == 200
    for answer in watching:
        answer.close()
    deadline = time.monotonic() + 20
    while house.server.services.live._watchers:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert first_event(house.server, headers)


def test_watchers_do_not_hold_up_a_server_that_ends(start: Callable[..., Running]) -> None:
    server = start(drain_notice=0, drain_timeout=20)
    with watched(server) as events:
        next(events)
        server.on_loop(server.services.lifecycle.drain, lambda: None)
        assert len(list(events)) <= 1


def test_percentiles_of_weighted_times() -> None:
    assert percentiles([]) is None
    assert percentiles([(0.002, 1)]) == [2.0, 2.0, 2.0]
    assert percentiles([(0.001, 90), (0.5, 5), (0.010, 5)]) == [1.0, 10.0, 500.0]


def test_the_stream_is_one_of_events(server: Running) -> None:
    with server.http.stream("GET", "/live") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
