"""What is noted of every request, and what happens to a task whose rows fail again and again."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from batching.types import FinishReason, StepOutput
from prefix_store.errors import UnknownTask
from prefix_store.prefix import Prefix
from prefix_store.store import PrefixStore
from prefix_store.tasks import Served, TaskConfig
from prefix_store.tenants import Tenant
from server.failure_watch import FailureWatch
from tests.server.conftest import Guarded, Running, prefix_file
from tests.server.fakes import EchoEngine, FakeRow, Gate

Start = Callable[..., Running]
FAILING, RAISING = "\x07", "\x06"  # the hand-written engine fails a row at these tokens


def served(version: int, revision: str = "aa") -> Served:
    prefix = Prefix(torch.zeros(1, 2, 1, 1, 1), revision, "prefix", {})
    return Served("acme", "poet", version, prefix, TaskConfig())


def test_three_failures_within_ten_minutes_are_too_many() -> None:
    now = [0.0]
    watch = FailureWatch(lambda: now[0])
    assert [watch.note(served(1)), watch.note(served(2)), watch.note(served(1))] == [False, False, False]
    now[0] = 601
    assert [watch.note(served(1)), watch.note(served(1))] == [False, False]
    assert not watch.note(served(1, revision="bb")), "deleted and uploaded anew: another version"
    assert watch.note(served(1))
    assert not watch.note(served(1))


def test_a_version_whose_rows_fail_is_quarantined_and_others_are_served_on(start: Start) -> None:
    server = start()
    server.upload("bad", 3, 0.1)
    server.upload("good", 3, 0.2)
    for _ in range(3):
        assert server.generate(FAILING, status=424, task_id="bad")["error_type"] == "generation"
    assert server.generate("ab", status=424, task_id="bad")["error_type"] == "quarantined"
    assert server.http.get("/tasks/bad").json()["versions"][0]["quarantined"] is not None
    assert server.generate("ab", task_id="good")["version"] == 1
    assert server.generate("ab")["generated_text"] == "ab"
    server.upload("bad", 3, 0.3)
    assert server.generate("ab", task_id="bad")["version"] == 2


def test_what_a_request_brought_about_itself_takes_no_version_out_of_service(
    start_guarded: Callable[..., Guarded],
) -> None:
    house = start_guarded(Tenant(name="acme"), Tenant(name="hostile"))
    house.ask("acme/tasks", "PUT", "/tasks/common", content=prefix_file())
    house.server.services.store.patch("acme", "common", public=True)
    ask = partial(house.ask, "hostile/generate", "POST")
    for _ in range(5):
        assert ask("/generate", json={"inputs": RAISING, "task_id": "common"}).status_code == 424
        assert ask("/generate_stream", json={"inputs": "a" + RAISING, "task_id": "common"}).status_code == 200
    assert ask("/generate", json={"inputs": "ab", "task_id": "common"}).status_code == 200
    for _ in range(3):  # but a version that gives no finite numbers fails everybody
        assert ask("/generate", json={"inputs": FAILING, "task_id": "common"}).status_code == 424
    refused = ask("/generate", json={"inputs": "ab", "task_id": "common"}).json()
    assert refused["error_type"] == "quarantined"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_version_is_quarantined_although_the_client_leaves_at_its_third_failure(
    start: Start, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    server, is_writing, may_go_on, is_noted = start(), threading.Event(), threading.Event(), threading.Event()
    server.upload("bad")
    server.upload("other")
    note = server.services.failures.note

    def patch_slowly(*_: object, **__: object) -> None:
        is_writing.set()
        assert may_go_on.wait(20)
        raise UnknownTask("other")

    def note_and_tell(served: Served) -> bool:
        is_too_many = note(served)
        if is_too_many:
            is_noted.set()
        return is_too_many

    monkeypatch.setattr(PrefixStore, "patch", patch_slowly)
    monkeypatch.setattr(server.services.failures, "note", note_and_tell)
    for _ in range(2):
        server.generate(FAILING, status=424, task_id="bad")
    with ThreadPoolExecutor() as threads:
        changing = threads.submit(server.http.patch, "/tasks/other", json={"version": 1})  # all writes wait behind it
        assert is_writing.wait(20)
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(post(path, {"inputs": "ab" + FAILING, "task_id": "bad"}))
            assert is_noted.wait(20)
        server.wait_for_open_rows(0)
        may_go_on.set()
        assert changing.result().status_code == 404
    deadline = time.monotonic() + 20
    while server.http.get("/tasks/bad").json()["versions"][0]["quarantined"] is None:
        assert time.monotonic() < deadline


def post(path: str, body: dict[str, str]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def test_a_streams_failures_count_too_and_the_bare_backbone_is_never_quarantined(start: Start) -> None:
    server = start()
    server.upload("bad")
    for _ in range(3):
        server.http.post("/generate_stream", json={"inputs": "ab" + FAILING, "task_id": "bad"})
        server.generate(FAILING, status=424)
    assert server.generate("ab", status=424, task_id="bad")["error_type"] == "quarantined"
    assert server.generate("ab")["generated_text"] == "ab"


def test_what_a_tenant_used_is_written_down_by_task_and_told_to_it_alone(
    start_guarded: Callable[..., Guarded],
) -> None:
    house = start_guarded(Tenant(name="acme"), Tenant(name="other"))
    house.ask("acme/tasks", "PUT", "/tasks/poet", content=prefix_file())
    for task_id in ("poet", "poet", None):
        house.ask("acme/generate", "POST", "/generate", json={"inputs": "ab", "task_id": task_id})
    house.server.services.store.usage.flush()
    usage = {each["task_id"]: each for each in house.ask("acme/generate", "GET", "/usage").json()["usage"]}
    assert (usage["poet"]["requests"], usage["poet"]["prompt_tokens"]) == (2, 4)
    assert (usage["base"]["requests"], usage["base"]["generated_tokens"]) == (1, 3)
    assert usage["base"]["seconds"] > 0
    assert house.ask("other/generate", "GET", "/usage").json() == {"usage": []}
    told = house.ask("other/operator", "GET", "/admin/usage?tenant=acme").json()["usage"]
    assert {each["task_id"] for each in told} == {"poet", "base"}
    assert house.ask("other/operator", "GET", "/admin/usage?tenant=acmee").status_code == 404
    assert house.ask("acme/operator", "GET", "/admin/usage?tenant=default").json() == {"usage": []}


def test_a_row_that_fails_in_its_first_step_has_read_its_prompt(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="acme"))
    assert house.ask("acme/generate", "POST", "/generate", json={"inputs": RAISING + "b"}).status_code == 424
    house.server.services.store.usage.flush()
    (used,) = house.ask("acme/generate", "GET", "/usage").json()["usage"]
    assert (used["requests"], used["prompt_tokens"], used["generated_tokens"]) == (1, 2, 0)


def test_a_row_that_has_ended_uses_no_more_seconds_while_its_mates_go_on(start_guarded: Callable[..., Guarded]) -> None:
    gate = Gate()
    house = start_guarded(Tenant(name="acme"), engine=EchoEngine(before_step=gate))
    body = {"model": "base", "prompt": ["", "ab"]}
    thread = threading.Thread(
        target=house.ask, args=("acme/generate", "POST", "/v1/completions"), kwargs={"json": body}
    )
    started_at = time.monotonic()
    thread.start()
    gate.wait_until_held()
    gate.allow(1)  # in which the first prompt's row ends
    gate.wait_until_held()
    time.sleep(0.3)
    gate.open()
    thread.join()
    seconds = time.monotonic() - started_at
    house.server.services.store.usage.flush()
    (used,) = house.ask("acme/generate", "GET", "/usage").json()["usage"]
    assert (used["prompt_tokens"], used["generated_tokens"]) == (1 + 2, 1 + 3)
    assert used["seconds"] < 2 * seconds - 0.3


def test_a_task_tells_what_the_callers_tenant_used_of_it(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="acme"), Tenant(name="other"))
    for task_id in ("poet", "unused"):
        house.ask("acme/tasks", "PUT", f"/tasks/{task_id}", content=prefix_file())
    house.server.services.store.patch("acme", "poet", public=True)
    for tenant, num_requests in (("acme", 2), ("other", 1)):
        for _ in range(num_requests):
            house.ask(f"{tenant}/generate", "POST", "/generate", json={"inputs": "ab", "task_id": "poet"})
    house.server.services.store.usage.flush()
    nothing = {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0}
    poet, unused = (each["usage"] for each in house.ask("acme/tasks", "GET", "/tasks").json()["tasks"])
    assert (poet["requests"], poet["prompt_tokens"], unused) == (2, 4, nothing)
    assert poet["generated_tokens"] > 0
    assert poet["seconds"] > 0
    assert house.ask("acme/tasks", "GET", "/tasks/poet").json()["usage"] == poet
    assert house.ask("acme/tasks", "PATCH", "/tasks/poet", json={"version": 1}).json()["usage"] == poet
    assert house.ask("other/tasks", "GET", "/tasks/poet").json()["usage"]["requests"] == 1


def test_a_line_that_a_full_disk_has_cut_does_not_spoil_the_next(
    start_guarded: Callable[..., Guarded], tmp_path: Path
) -> None:
    house = start_guarded(Tenant(name="acme"))
    path = tmp_path / "store" / "audit.jsonl"
    path.write_text('{"time": "20')
    house.ask("acme/tasks", "PUT", "/tasks/poet", content=prefix_file())
    house.ask("acme/tasks", "DELETE", "/tasks/poet")
    cut, *lines = path.read_text().splitlines()
    assert cut == '{"time": "20'
    assert [json.loads(line)["action"] for line in lines] == ["task.upload", "task.delete"]


def test_changes_are_in_the_audit_log_with_who_and_when_and_no_secret(
    start_guarded: Callable[..., Guarded], tmp_path: Path
) -> None:
    house = start_guarded(Tenant(name="acme"))
    house.ask("acme/tasks", "PUT", "/tasks/poet", content=prefix_file(), headers={"x-request-id": "mine"})
    house.ask("acme/tasks", "PATCH", "/tasks/poet", json={"config": {"prompt_template": "private {inputs}"}})
    house.ask("acme/tasks", "DELETE", "/tasks/poet")
    made = house.ask("acme/operator", "POST", "/admin/keys", json={"tenant": "acme", "scopes": ["tasks"]}).json()
    text = (tmp_path / "store" / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["action"] for line in lines] == ["task.upload", "task.patch", "task.delete", "key.create"]
    assert (lines[0]["tenant"], lines[0]["request_id"], lines[0]["version"]) == ("acme", "mine", 1)
    assert all(line["key_id"] and line["time"] for line in lines)
    assert "private" not in text
    assert made["secret"] not in text
    assert not any(key in text for key in house.keys.values())


def test_a_trial_run_that_fails_for_another_reason_is_not_told_as_the_files_fault(start: Start) -> None:
    class NoRoom(EchoEngine):
        def _advance(self, row: FakeRow) -> StepOutput:
            self.running.remove(row)
            request_id = row.request.request_id
            return StepOutput(request_id, finish_reason=FinishReason.ERROR, error="OutOfMemoryError: no room")

    server = start(NoRoom())
    answer = server.http.put("/tasks/sound", content=prefix_file())
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    assert server.http.get("/tasks/sound").status_code == 404
