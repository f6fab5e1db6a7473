"""Canaries over HTTP: each request's version is drawn, and every dialect's answer says which it was."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Running, prefix_file

FAILING = "\x07"  # the hand-written engine fails a row at this token


@pytest.fixture
def server(server: Running) -> Iterator[Running]:
    """With a task of two versions, of which the second gets one request in four."""
    for value in (0.1, 0.2):
        server.http.put("/tasks/canary?serve=false", content=prefix_file(3, value))
    yield split(server, {"1": 0.75, "2": 0.25})
    server.http.delete("/tasks/canary")


def split(server: Running, traffic: Any, status: int = 200) -> Running:
    answer = server.http.patch("/tasks/canary", json={"traffic": traffic})
    assert answer.status_code == status, answer.text
    return server


def versions(server: Running, num_requests: int = 60) -> set[int]:
    return {server.generate("ab", adapter_id="canary", max_new_tokens=1)["version"] for _ in range(num_requests)}


def test_an_upload_that_is_not_to_be_served_waits_for_its_share(server: Running) -> None:
    task = server.http.get("/tasks/canary").json()
    assert (task["version"], len(task["versions"]), task["traffic"]) == (1, 2, {"1": 0.75, "2": 0.25})
    assert versions(server) == {1, 2}


def test_null_an_upload_and_a_rollback_each_end_it(server: Running) -> None:
    split(server, None)
    assert server.http.get("/tasks/canary").json()["traffic"] is None
    assert versions(server, 10) == {1}
    for end, version in ((lambda: server.http.patch("/tasks/canary", json={"version": 2}), 2),
                         (lambda: server.http.put("/tasks/canary", content=prefix_file(3, 0.1)), 1)):  # fmt: skip
        split(server, {"1": 1, "2": 1})
        assert end().json()["version"] == version
        assert versions(server, 10) == {version}


def test_other_settings_leave_it(server: Running) -> None:
    answer = server.http.patch("/tasks/canary", json={"config": {"description": "d"}, "version": None})
    assert answer.json()["traffic"] == {"1": 0.75, "2": 0.25}


def test_streams_scores_and_openai_say_which_version_answered(server: Running) -> None:
    split(server, {"2": 1})
    asked = {"task_id": "canary", "inputs": "ab"}
    for path, body in (
        ("/generate", asked),
        ("/generate_stream", asked),
        ("/score", {**asked, "continuations": ["c", "d"]}),
        ("/v1/completions", {"model": "canary", "prompt": ["ab", "c"], "max_tokens": 1}),
        ("/v1/completions", {"model": "canary", "prompt": "ab", "max_tokens": 1, "stream": True}),
    ):
        answer = server.http.post(path, json=body)
        assert (answer.status_code, answer.headers["x-task-version"]) == (200, "2"), path


def test_all_rows_of_a_request_are_of_one_version(server: Running) -> None:
    split(server, {"1": 1, "2": 1})
    body = {"model": "canary", "prompt": ["x"] * 8, "max_tokens": 4}
    for _ in range(10):
        choices = server.http.post("/v1/completions", json=body).json()["choices"]
        assert len({choice["text"] for choice in choices}) == 1  # the engine says the prefix's hash first


def test_a_canary_whose_rows_fail_again_and_again_gets_no_more_of_them(server: Running) -> None:
    split(server, {"2": 1})
    for _ in range(3):
        server.generate(FAILING, status=424, adapter_id="canary")
    assert versions(server, 10) == {1}
    task = server.http.get("/tasks/canary").json()
    assert [version["quarantined"] is None for version in task["versions"]] == [True, False]
    assert task["traffic"] == {"2": 1.0}


@pytest.mark.parametrize(
    "traffic",
    [{}, {"1": 0}, {"1": -1}, {"1": 1e7}, {"1": "1"}, {"1": True}, {"0": 1}, {"01": 1}, {"x": 1}, {"1": None}, [1], 1],
)
def test_traffic_that_means_nothing_is_422(server: Running, traffic: Any) -> None:
    split(server, traffic, status=422)


def test_a_version_that_is_not_there_is_404(server: Running) -> None:
    split(server, {"1": 1, "3": 1}, status=404)
    split(server, {"9999999999": 1}, status=404)
    assert server.http.get("/tasks/canary").json()["traffic"] == {"1": 0.75, "2": 0.25}
