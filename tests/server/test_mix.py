"""Several tasks in one request over HTTP: by name with their weights, each in the version that is served."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from transformers import GPT2LMHeadModel

from batching.types import MixedPrefix
from prefix_store.formats import dump
from prefix_store.tenants import Tenant
from tests.batching import oracle
from tests.batching.support import ask, make_prefix
from tests.server.conftest import Guarded, Running, prefix_file
from tests.server.fakes import SHAPE, Gate

FAILING = "\x07"  # the hand-written engine fails the last row of a mix at this token
MIX = {"mix": {"poet": 0.7, "clerk": 0.3}}


@pytest.fixture(scope="module")
def tasks(server: Running) -> Running:
    server.upload("poet", 3, 0.1)
    server.upload("clerk", 5, 0.2)
    server.upload("clerk", 5, 0.3)
    return server


def post(server: Running, path: str = "/generate", status: int = 200, **body: Any) -> Any:
    answer = server.http.post(path, json={"inputs": "ab", "task_id": MIX, **body})
    assert answer.status_code == status, answer.text
    return answer


def test_the_answer_names_every_task_with_its_version_and_weight(tasks: Running) -> None:
    mix = [{"task_id": "poet", "version": 1, "weight": 0.7}, {"task_id": "clerk", "version": 2, "weight": 0.3}]
    answer = post(tasks, parameters={"details": True})
    body = answer.json()
    assert (body["task_id"], body["version"], body["mix"]) == (None, None, mix)
    assert (body["details"]["prefix_tokens"], body["details"]["prompt_tokens"]) == (5, 2)
    assert (answer.headers["x-task-version"], answer.headers["x-prefix-tokens"]) == ("poet=1, clerk=2", "5")
    stream = post(tasks, "/generate_stream")
    assert stream.headers["x-task-version"] == "poet=1, clerk=2"
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data:")]
    assert events[-1]["generated_text"] == body["generated_text"]
    scores = post(tasks, "/score", continuations=["c"]).json()
    assert (scores["task_id"], scores["mix"]) == (None, mix)
    (other,) = post(tasks, "/").json()
    assert other["mix"] == mix


def test_the_bare_backbone_may_be_a_part(tasks: Running) -> None:
    answer = post(tasks, task_id={"mix": {"poet": 1, "base": 2}})
    assert answer.json()["mix"][1] == {"task_id": None, "version": None, "weight": 2.0}
    assert answer.headers["x-task-version"] == "poet=1"


def test_one_task_is_answered_as_ever(tasks: Running) -> None:
    assert set(post(tasks, task_id="poet").json()) == {"generated_text", "task_id", "version"}
    assert set(post(tasks, "/score", task_id="poet", continuations=["c"]).json()) == {"task_id", "version", "scores"}


@pytest.mark.parametrize(
    "mix",
    [
        {},
        {"poet": 1},
        {"poet": 1, "clerk": 0},
        {"poet": 1, "clerk": -1},
        {"poet": 1, "clerk": 1e7},
        {"poet": 1, "clerk": "1"},
        {"poet": 1, "clerk": None},
        {f"task-{i}": 1 for i in range(9)},
        ["poet", "clerk"],
    ],
)
def test_a_mix_that_means_nothing_is_422(tasks: Running, mix: Any) -> None:
    assert post(tasks, status=422, task_id={"mix": mix}).json()["error_type"] == "validation"


def test_what_does_not_go_with_a_mix_is_422_and_says_so(tasks: Running) -> None:
    assert "num_beams is 2" in post(tasks, status=422, parameters={"num_beams": 2}).json()["error"]
    assert "names its tasks itself" in post(tasks, status=422, parameters={"adapter_id": "poet"}).json()["error"]
    assert "names its tasks itself" in post(tasks, "/tasks/poet", status=422).json()["error"]
    post(tasks, status=422, task_id={**MIX, "more": 1})
    many = {"mix": {"poet": 1, "base": 1, "tgi": 1, "tiny": 1, "clerk": 1}}
    assert "5; the server has 4 slots" in post(tasks, status=422, task_id=many).json()["error"]
    sampled = {"do_sample": True, "best_of": 16}
    four = {"mix": {"poet": 1, "base": 1, "clerk": 1, "tgi": 1}}
    assert "80 rows" in post(tasks, status=422, task_id=many, parameters=sampled).json()["error"]
    refused = post(tasks, status=422, task_id=four, parameters=sampled).json()["error"]
    assert "64 rows; this tenant may have 20" in refused


def test_an_unknown_part_is_404(tasks: Running) -> None:
    for unknown in ("nobody", "..", "a b"):
        assert post(tasks, status=404, task_id={"mix": {"poet": 1, unknown: 1}}).json()["error_type"] == "not_found"


def test_another_tenants_task_is_no_part(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="acme"), Tenant(name="other"))
    for tenant, task_id in (("acme", "poet"), ("other", "clerk")):
        house.ask(f"{tenant}/tasks", "PUT", f"/tasks/{task_id}", content=prefix_file())
    body = {"inputs": "ab", "task_id": MIX}
    assert house.ask("acme/generate", "POST", "/generate", json=body).status_code == 404


def test_defaults_hold_where_all_tasks_agree_and_templates_have_to(start: Callable[..., Running]) -> None:
    server = start()
    for task_id, parameters in (("poet", {"max_new_tokens": 2, "seed": 1}), ("clerk", {"max_new_tokens": 2})):
        server.upload(task_id)
        server.http.patch(
            f"/tasks/{task_id}", json={"config": {"parameters": parameters, "prompt_template": "{inputs}!"}}
        )
    details = post(server, parameters={"details": True}).json()["details"]
    assert (details["finish_reason"], details["seed"], details["prompt_tokens"]) == ("length", None, 3)
    server.http.patch("/tasks/clerk", json={"config": {"prompt_template": None}})
    for path, more in (("/generate", {}), ("/score", {"continuations": ["c"]})):
        assert "different prompt templates" in post(server, path, status=422, **more).json()["error"]
    assert post(server, task_id={"mix": {"poet": 1, "base": 1}}, parameters={"details": True}).status_code == 200


def test_each_task_is_charged_for_its_row(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="acme"))
    for task_id in ("poet", "clerk"):
        house.ask("acme/tasks", "PUT", f"/tasks/{task_id}", content=prefix_file())
    house.ask("acme/generate", "POST", "/generate", json={"inputs": "ab", "task_id": MIX})
    house.server.services.store.usage.flush()
    usage = {each["task_id"]: each for each in house.ask("acme/generate", "GET", "/usage").json()["usage"]}
    assert set(usage) == {"poet", "clerk"}
    for used in usage.values():
        assert (used["requests"], used["prompt_tokens"]) == (1, 2)
        assert used["generated_tokens"] > 2
        assert used["seconds"] > 0


def test_an_open_mix_takes_a_place_for_each_of_its_rows(start: Callable[..., Running]) -> None:
    server, gate = start(), Gate()
    for task_id in ("poet", "clerk"):
        server.upload(task_id)
    server.engine.before_step = gate
    with ThreadPoolExecutor() as threads:
        answering = threads.submit(post, server)
        server.wait_for_open_rows(2)
        gate.open()
        assert answering.result().status_code == 200
    server.wait_for_open_rows(0)


def test_only_the_task_whose_row_failed_is_blamed(start: Callable[..., Running]) -> None:
    server = start()
    server.upload("poet", 3, 0.1)
    server.upload("clerk", 5, 0.2)
    for _ in range(3):
        assert post(server, status=424, inputs=FAILING).json()["error_type"] == "generation"
    assert post(server, status=424).json()["error_type"] == "quarantined"
    assert server.generate("ab", task_id="poet")["version"] == 1
    assert server.generate("ab", status=424, task_id="clerk")["error_type"] == "quarantined"


# -- on a tiny real model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_tasks(real: Running) -> Running:
    for task_id, num_virtual_tokens in (("poet", 3), ("clerk", 7)):
        file = dump(make_prefix(SHAPE, num_virtual_tokens).past_key_values, {})
        assert real.http.put(f"/tasks/{task_id}", content=file).status_code == 201
    return real


def test_texts_and_scores_are_those_of_two_plain_models_averaged(real_tasks: Running, model: GPT2LMHeadModel) -> None:
    mix = (MixedPrefix(make_prefix(SHAPE, 3), 0.7), MixedPrefix(make_prefix(SHAPE, 7), 0.3))
    request = replace(ask(b"the sea", max_new_tokens=8), mix=mix)
    parameters = {"max_new_tokens": 8, "details": True}
    tokens = post(real_tasks, inputs="the sea", parameters=parameters).json()["details"]["tokens"]
    assert [token["id"] for token in tokens] == oracle.generate_mixture(model, request)
    expected = oracle.mixture_log_probs(model, request, list(b" is"))[6:-1]
    (score,) = post(real_tasks, "/score", inputs="the sea", continuations=[" is"]).json()["scores"]
    assert score["logprob"] == pytest.approx(expected[range(3), list(b" is")].sum().item(), abs=1e-4)
    assert score["is_greedy"] == (expected.argmax(dim=-1).tolist() == list(b" is"))
