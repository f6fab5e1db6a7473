"""Tasks over HTTP: upload, read back, versions, settings, deletion."""

import hashlib
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests.server.conftest import FINGERPRINT, Running, prefix_file
from tests.server.fakes import SHAPE


def put(server: Running, task_id: str, body: bytes, **headers: str) -> Any:
    return server.http.put(
        f"/tasks/{task_id}", content=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def test_an_upload_is_served_by_the_next_request(server: Running) -> None:
    body = prefix_file(3, backbone=FINGERPRINT)
    answer = put(server, "new", body)
    sha256 = hashlib.sha256(body).hexdigest()
    assert answer.status_code == 201
    assert answer.headers["etag"] == f'"{sha256}"'
    facts = answer.json()
    assert facts.pop("created_at")
    assert facts == {
        "task_id": "new",
        "version": 1,
        "sha256": sha256,
        "kind": "prefix",
        "num_virtual_tokens": 3,
        "num_bytes": len(body),
        "backbone_checked": True,
    }
    assert server.generate("ab", adapter_id="new")["version"] == 1


def test_the_same_bytes_change_nothing_others_are_the_next_version(server: Running) -> None:
    first, second = prefix_file(3, 0.1), prefix_file(4, 0.2)
    answers = [put(server, "twice", body) for body in (first, first, second, first)]
    assert [(answer.status_code, answer.json()["version"]) for answer in answers] == [
        (201, 1),
        (200, 1),
        (200, 2),
        (200, 1),
    ]


def test_what_was_uploaded_comes_back_byte_for_byte(server: Running) -> None:
    first, second = prefix_file(3, 0.1), prefix_file(4, 0.2)
    put(server, "back", first)
    put(server, "back", second)
    latest = server.http.get("/tasks/back/prefix")
    assert latest.content == second
    assert latest.headers["content-type"] == "application/octet-stream"
    assert latest.headers["etag"] == f'"{hashlib.sha256(second).hexdigest()}"'
    assert server.http.get("/tasks/back/prefix?version=1").content == first
    assert server.http.get("/tasks/back/prefix?version=3").status_code == 404
    assert server.http.get("/tasks/back/prefix?version=0").status_code == 422


def test_a_file_of_peft_is_read_and_kept_as_it_came(server: Running) -> None:
    body = save({"prompt_embeddings": torch.full((5, SHAPE.n_layer * 2 * SHAPE.n_embd), 0.1)}, {"format": "pt"})
    facts = put(server, "peft", body).json()
    assert (facts["kind"], facts["num_virtual_tokens"], facts["backbone_checked"]) == ("prefix_tuning", 5, False)
    assert server.http.get("/tasks/peft/prefix").content == body
    assert server.generate("ab", adapter_id="peft")["version"] == 1


def test_prompt_embeddings_are_compiled_by_the_backbone(server: Running) -> None:
    body = save({"prompt_embeddings": torch.full((6, SHAPE.n_embd), 0.1)})
    facts = put(server, "soft", body).json()
    assert (facts["kind"], facts["num_virtual_tokens"], facts["backbone_checked"]) == ("prompt_tuning", 6, False)


def test_a_text_is_compiled_into_a_prefix(server: Running) -> None:
    body = b'{"text": "be brief"}'
    answer = put(server, "brief", body, content_type="application/json")
    assert answer.status_code == 201
    assert (answer.json()["kind"], answer.json()["num_virtual_tokens"]) == ("text", 8)
    assert answer.json()["backbone_checked"] is True
    back = server.http.get("/tasks/brief/prefix")
    assert (back.content, back.headers["content-type"]) == (body, "application/json")
    again = put(server, "brief", body, content_type="application/json")
    assert (again.status_code, again.json()["version"]) == (200, 1)


@pytest.mark.parametrize("body", [b'{"text": ""}', b'{"text": null}', b'{"text": "a", "url": "b"}', b"{}", b"[]"])
def test_a_text_upload_that_is_none_is_422(server: Running, body: bytes) -> None:
    assert put(server, "no", body, content_type="application/json").status_code == 422


def test_a_file_that_is_no_prefix_is_422(server: Running) -> None:
    other = prefix_file(3, backbone="e" * 64)
    for body in (b"", b"7 bytes", b"<html>", other, prefix_file(3, float("nan")), prefix_file(3)[:-2]):
        answer = put(server, "no", body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert server.http.get("/tasks/no").status_code == 404


def test_a_prefix_that_leaves_no_room_for_one_token_is_422(server: Running) -> None:
    assert "the backbone has 128" in put(server, "no", prefix_file(127)).json()["error"]


def test_an_upload_larger_than_any_prefix_is_413(server: Running) -> None:
    answer = put(server, "no", b"\0" * (300 << 10))
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


def test_multipart_is_415(server: Running) -> None:
    assert put(server, "no", b"x", content_type="multipart/form-data; boundary=a").status_code == 415


@pytest.mark.parametrize("name", ["base", "tgi", "tiny", ".a", "a" * 129])
def test_a_name_that_no_task_can_have_is_422(server: Running, name: str) -> None:
    assert put(server, name, prefix_file()).status_code == 422


def test_a_declared_hash_is_compared(server: Running) -> None:
    body = prefix_file()
    assert put(server, "hashed", body, x_content_sha256="0" * 64).status_code == 422
    assert put(server, "hashed", body, x_content_sha256=hashlib.sha256(body).hexdigest().upper()).status_code == 201


def test_preconditions_are_honoured(server: Running) -> None:
    first, second = prefix_file(3, 0.1), prefix_file(3, 0.2)
    assert put(server, "cas", first, if_match="*").status_code == 412
    etag = put(server, "cas", first, if_none_match="*").headers["etag"]
    refused = put(server, "cas", second, if_none_match="*")
    assert (refused.status_code, refused.json()["error_type"]) == (412, "precondition_failed")
    assert put(server, "cas", second, if_match='"' + "0" * 64 + '"').status_code == 412
    assert put(server, "cas", second, if_match=etag).json()["version"] == 2
    assert server.http.patch("/tasks/cas", json={"version": 1}, headers={"if-match": etag}).status_code == 412
    assert server.http.delete("/tasks/cas", headers={"if-match": etag}).status_code == 412
    assert put(server, "cas", second, if_none_match='"abc"').status_code == 422


def test_a_config_is_patched_only_on_the_version_it_was_meant_for(server: Running) -> None:
    etag = put(server, "cas-config", prefix_file(3, 0.1)).headers["etag"]
    put(server, "cas-config", prefix_file(3, 0.2))
    patch = {"config": {"description": "of version 1"}}
    assert server.http.patch("/tasks/cas-config", json=patch, headers={"if-match": etag}).status_code == 412
    assert server.http.get("/tasks/cas-config").json()["config"]["description"] == ""


def test_a_change_takes_no_condition_that_there_be_no_task(server: Running) -> None:
    put(server, "there", prefix_file(3, 0.1))
    for method, body in (("PATCH", {"version": 1}), ("DELETE", None)):
        answer = server.http.request(method, "/tasks/there", json=body, headers={"if-none-match": "*"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert server.http.get("/tasks/there").status_code == 200


def test_defaults_that_contradict_each_other_are_refused(server: Running) -> None:
    put(server, "defaults", prefix_file(3, 0.1))
    for parameters in (
        {"temperature": 0.5, "num_beams": 4},
        {"min_new_tokens": 3, "max_new_tokens": 2},
        {"min_new_tokens": 65},  # of at most 64, where a request says nothing
        {"max_new_tokens": 1_000_000},
        {"num_beams": 5},  # of four slots
    ):
        answer = server.http.patch("/tasks/defaults", json={"config": {"parameters": parameters}})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation"), parameters
    assert server.http.get("/tasks/defaults").json()["config"]["parameters"] == {}


def test_defaults_that_leave_no_room_beside_the_prefix_are_refused(server: Running) -> None:
    put(server, "long", prefix_file(40, 0.1))
    parameters = {"max_new_tokens": server.http.get("/info").json()["max_total_tokens"] - 20}
    answer = server.http.patch("/tasks/long", json={"config": {"parameters": parameters}})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    put(server, "short", prefix_file(3, 0.1))
    assert server.http.patch("/tasks/short", json={"config": {"parameters": parameters}}).status_code == 200


def test_a_request_that_wants_no_sampling_gets_none_of_its_tasks(server: Running) -> None:
    put(server, "warm", prefix_file(3, 0.1))
    server.http.patch("/tasks/warm", json={"config": {"parameters": {"temperature": 0.9}}})
    body = {"task_id": "warm", "inputs": "ab", "parameters": {"do_sample": False, "details": True}}
    assert server.http.post("/generate", json=body).json()["details"]["seed"] is None


@pytest.mark.parametrize(
    ("defaults", "own", "is_sampled"),
    [
        ({"temperature": 0.8, "best_of": 2}, {"do_sample": False}, False),
        ({"temperature": 0.8, "best_of": 2}, {"temperature": 0}, False),
        ({"temperature": 0.8, "best_of": 2}, {"num_beams": 2}, False),
        ({"num_beams": 2, "length_penalty": 2.0}, {"temperature": 0.7}, True),
        ({"num_beams": 2}, {"best_of": 2, "do_sample": True}, True),
        ({"temperature": 0}, {"do_sample": True}, True),
        ({"temperature": 0}, {"top_p": 0.9}, True),
        ({"do_sample": False}, {"do_sample": True}, True),
        ({"num_beams": 2}, {"do_sample": False, "temperature": 0.7}, True),
        ({"min_new_tokens": 32}, {"max_new_tokens": 16}, False),
        ({"num_beams": 2, "min_new_tokens": 3}, {"grammar": {"type": "regex", "value": "ab|cd"}}, False),
    ],
)
def test_how_a_request_wants_to_be_searched_wins_over_its_tasks_ways(
    server: Running, defaults: dict[str, object], own: dict[str, object], is_sampled: bool
) -> None:
    put(server, "ways", prefix_file(3, 0.1))
    assert server.http.patch("/tasks/ways", json={"config": {"parameters": defaults}}).status_code == 200
    body = {"task_id": "ways", "inputs": "ab", "parameters": {**own, "details": True}}
    answer = server.http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["details"]["seed"] is not None) == is_sampled


@pytest.mark.parametrize("defaults", [{"num_beams": 2, "length_penalty": 2.0}, {"temperature": 0.7, "best_of": 2}])
def test_a_task_whose_answers_are_chosen_by_default_is_streamed_unchosen(
    server: Running, defaults: dict[str, object]
) -> None:
    put(server, "chosen", prefix_file(3, 0.1))
    assert server.http.patch("/tasks/chosen", json={"config": {"parameters": defaults}}).status_code == 200
    answer = server.http.post("/generate_stream", json={"task_id": "chosen", "inputs": "ab"})
    assert (answer.status_code, "generated_text" in answer.text) == (200, True), answer.text
    openai = {"model": "chosen", "prompt": "ab", "stream": True}
    assert server.http.post("/v1/completions", json=openai).status_code == 200


def test_a_tasks_defaults_give_way_to_openais_and_to_a_mix(server: Running) -> None:
    defaults = {"one": {"min_new_tokens": 32}, "two": {"do_sample": False}, "three": {"num_beams": 2}}
    for name, parameters in defaults.items():
        put(server, name, prefix_file(3, 0.1))
        assert server.http.patch(f"/tasks/{name}", json={"config": {"parameters": parameters}}).status_code == 200
    put(server, "four", prefix_file(3, 0.2))
    server.http.patch("/tasks/four", json={"config": {"parameters": defaults["three"]}})
    for asked in (
        {"model": "one", "prompt": "ab"},
        {"model": "two", "prompt": "ab", "n": 2},
        {"model": "three", "prompt": "ab", "n": 2},
        {"model": "three", "prompt": "ab", "response_format": {"type": "json_object"}},
    ):
        answer = server.http.post("/v1/completions", json=asked)
        assert answer.status_code == 200, (asked, answer.text)
    mixed = {"task_id": {"mix": {"three": 0.5, "four": 0.5}}, "inputs": "ab"}
    assert server.http.post("/generate", json=mixed).status_code == 200


def test_a_rollback_serves_the_older_version(server: Running) -> None:
    put(server, "roll", prefix_file(3, 0.1))
    put(server, "roll", prefix_file(3, 0.2))
    answer = server.http.patch("/tasks/roll", json={"version": 1})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert server.generate("ab", adapter_id="roll")["version"] == 1
    assert [version["version"] for version in answer.json()["versions"]] == [1, 2]
    assert server.http.patch("/tasks/roll", json={"version": 9}).status_code == 404


def test_settings_are_set_one_by_one_and_cleared_by_null(server: Running) -> None:
    put(server, "set", prefix_file())
    config = {"description": "d", "prompt_template": "Q {inputs}", "parameters": {"temperature": 0.5, "top_k": None}}
    server.http.patch("/tasks/set", json={"config": config})
    answer = server.http.patch("/tasks/set", json={"config": {"prompt_template": None}}).json()["config"]
    cleared = {"prompt_template": None, "chat_template": None}
    assert answer == {"description": "d", "parameters": {"temperature": 0.5}, **cleared}
    assert server.http.get("/tasks/set").json()["config"] == answer


@pytest.mark.parametrize(
    "patch",
    [
        {"config": {"prompt_template": "none"}},
        {"config": {"prompt_template": "{inputs}{inputs}"}},
        {"config": {"parameters": {"details": True}}},
        {"config": {"parameters": {"top_k": 999}}},
        {"config": {"who": 1}},
        {"version": True},
        {"version": 0},
        {"version": "1"},
        {"version": 2**80},
        {"unknown": 1},
        [],
    ],
)
def test_a_patch_that_means_nothing_is_422(server: Running, patch: Any) -> None:
    put(server, "patched", prefix_file())
    assert server.http.patch("/tasks/patched", json=patch).status_code == 422


def test_making_a_task_public_is_an_operators(server: Running) -> None:
    put(server, "shy", prefix_file())
    answer = server.http.patch("/tasks/shy", json={"public": True})
    assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")


def test_a_deleted_task_is_gone(server: Running) -> None:
    put(server, "gone", prefix_file())
    assert server.http.delete("/tasks/gone").status_code == 204
    for answer in (
        server.http.get("/tasks/gone"),
        server.http.delete("/tasks/gone"),
        server.http.get("/tasks/gone/prefix"),
    ):
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
    server.generate("ab", status=404, adapter_id="gone")


def test_tasks_are_listed_in_pages(start: Any) -> None:
    server = start()
    for name in ("b", "a", "c"):
        server.upload(name)
    page = server.http.get("/tasks?limit=2").json()
    assert ([task["task_id"] for task in page["tasks"]], page["next"]) == (["a", "b"], "b")
    rest = server.http.get("/tasks?limit=2&after=b").json()
    assert ([task["task_id"] for task in rest["tasks"]], rest["next"]) == (["c"], None)
    assert server.http.get("/info").json()["num_tasks"] == 3
