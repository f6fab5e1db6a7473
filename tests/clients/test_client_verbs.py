"""What each verb sends, and what it makes of the answer; every test runs with the sync and the async client."""

import hashlib
import inspect
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest

from clients.client import AsyncClient, Client
from clients.errors import InvalidTaskId, UnexpectedAnswer

VERSION = {
    "version": 2,
    "sha256": "ab" * 32,
    "kind": "prefix",
    "num_virtual_tokens": 10,
    "num_bytes": 1234,
    "backbone_checked": True,
    "created_at": "2026-11-24T23:00:00Z",
}
TASK = {
    "task_id": "e2e",
    "version": 2,
    "versions": [{**VERSION, "stale": False, "a_newer_servers_field": 1}],
    "config": {"description": "restaurants", "prompt_template": None, "parameters": {"top_k": 5}},
    "created_at": "2026-11-24T22:00:00Z",
}
GENERATION = {
    "generated_text": " The sea",
    "task_id": "e2e",
    "version": 3,
    "details": {
        "finish_reason": "length",
        "prompt_tokens": 4,
        "generated_tokens": 2,
        "prefix_tokens": 10,
        "seed": None,
        "steps": [5, 6],
        "tokens": [{"id": 383, "text": " The", "logprob": -1.5, "special": False, "skipped": False}],
    },
}


def test_generate_sends_task_inputs_and_parameters_and_reads_the_details(fake, ask):
    fake.will_answer(200, GENERATION)
    answer = ask("generate", "e2e", "name : X", max_new_tokens=2, details=True)
    assert (fake.received[0].method, fake.received[0].target) == ("POST", "/generate")
    assert fake.received[0].json == {
        "task_id": "e2e",
        "inputs": "name : X",
        "parameters": {"max_new_tokens": 2, "details": True},
    }
    assert (answer.generated_text, answer.version, answer.details.steps) == (" The sea", 3, (5, 6))
    assert answer.details.tokens[0].text == " The"


def test_what_was_asked_for_beside_the_text_is_read(fake, ask):
    the, a = {"id": 383, "text": " The", "logprob": -1.5}, {"id": 257, "text": " a", "logprob": -2.5}
    told = {"prefill": [{"id": 5, "text": "x", "logprob": None}], "top_tokens": [[the, a]], "skipped_tokens": 3}
    fake.will_answer(200, GENERATION | {"details": GENERATION["details"] | told})
    details = ask("generate", "e2e", "x", details=True, decoder_input_details=True, top_n_tokens=2, truncate=1).details
    assert (details.prefill[0].text, details.prefill[0].logprob, details.skipped_tokens) == ("x", None, 3)
    assert [[token.text for token in place] for place in details.top_tokens] == [[" The", " a"]]


def test_no_task_means_the_bare_backbone(fake, ask):
    fake.will_answer(200, {"generated_text": "x"})
    answer = ask("generate", None, "the sea")
    assert fake.received[0].json["task_id"] is None
    assert (answer.task_id, answer.version, answer.details) == (None, None, None)


def test_a_results_values_cannot_be_changed(fake, ask):
    fake.will_answer(200, GENERATION)
    answer = ask("generate", "e2e", "x")
    with pytest.raises(AttributeError):
        answer.generated_text = "something else"


@pytest.mark.parametrize("source", ["path", "bytes", "file"])
def test_an_upload_sends_the_file_as_it_is_with_its_digest(fake, ask, tmp_path, source):
    content = bytes(range(256)) * 1000
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    fake.will_answer(201, {"task_id": "e2e", **VERSION})
    answer = ask("upload", "e2e", {"path": path, "bytes": content, "file": io.BytesIO(content)}[source])
    received = fake.received[0]
    assert (received.method, received.target, received.body) == ("PUT", "/tasks/e2e", content)
    assert received.headers["content-type"] == "application/octet-stream"
    assert received.headers["x-content-sha256"] == hashlib.sha256(content).hexdigest()
    assert (answer.created, answer.version.num_virtual_tokens) == (True, 10)
    assert answer.version.created_at == datetime(2026, 11, 24, 23, tzinfo=UTC)


def test_an_upload_tells_its_progress_up_to_the_last_byte(fake, ask):
    content = bytes(200_000)
    reports = []
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    answer = ask("upload", "e2e", content, progress=lambda sent, total: reports.append((sent, total)))
    assert reports == [(65536, 200_000), (131072, 200_000), (196608, 200_000), (200_000, 200_000)]
    assert fake.received[0].body == content
    assert fake.received[0].headers["content-length"] == "200000"
    assert answer.created is False


def test_conditions_go_out_as_entity_tags(fake, ask):
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    fake.will_answer(201, {"task_id": "e2e", **VERSION})
    ask("upload", "e2e", b"x", if_match="ab" * 32)
    ask("upload", "e2e", b"x", if_none_match=True)
    assert fake.received[0].headers["if-match"] == f'"{"ab" * 32}"'
    assert fake.received[1].headers["if-none-match"] == "*"


def test_a_plain_text_is_uploaded_as_json(fake, ask):
    fake.will_answer(201, {"task_id": "haiku", **VERSION, "kind": "text"})
    answer = ask("upload_text", "haiku", "Write a haiku.\n")
    assert fake.received[0].json == {"text": "Write a haiku.\n"}
    assert answer.version.kind == "text"


def test_tasks_come_in_pages(fake, ask):
    fake.will_answer(200, {"tasks": [TASK], "next": "e2e"})
    page = ask("tasks", limit=1, after="d")
    assert fake.received[0].target == "/tasks?limit=1&after=d"
    assert (page.tasks[0].task_id, page.next) == ("e2e", "e2e")


def test_a_task_knows_the_version_that_it_serves_and_ignores_fields_it_does_not_know(fake, ask):
    fake.will_answer(200, TASK)
    task = ask("task", "e2e")
    assert fake.received[0].target == "/tasks/e2e"
    assert (task.served.version, task.config.parameters) == (2, {"top_k": 5})


def test_use_version_and_set_config_are_patches(fake, ask):
    fake.will_answer(200, TASK)
    fake.will_answer(200, TASK)
    fake.will_answer(200, TASK)
    ask("use_version", "e2e", 1)
    ask("set_config", "e2e", prompt_template="{inputs} ->", parameters={"max_new_tokens": 9})
    ask("use_version", "e2e", 1, prompt_template="{inputs}")
    assert [received.method for received in fake.received] == ["PATCH"] * 3
    assert fake.received[2].json == {"version": 1, "config": {"prompt_template": "{inputs}"}}
    assert fake.received[0].json == {"version": 1}
    assert fake.received[1].json == {
        "config": {"prompt_template": "{inputs} ->", "parameters": {"max_new_tokens": 9}},
    }


def test_a_mix_goes_out_as_it_is_and_tells_its_parts(fake, ask):
    mix = {"mix": {"e2e": 0.7, "base": 0.3}}
    parts = [{"task_id": "e2e", "version": 2, "weight": 0.7}, {"task_id": None, "version": None, "weight": 0.3}]
    fake.will_answer(200, {"generated_text": "a", "task_id": None, "version": None, "mix": parts})
    answer = ask("generate", mix, "name : X")
    assert fake.received[0].json["task_id"] == mix
    assert [(part.task_id, part.version, part.weight) for part in answer.mix] == [("e2e", 2, 0.7), (None, None, 0.3)]


def test_a_version_is_uploaded_unserved_and_given_its_share(fake, ask):
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    fake.will_answer(200, {**TASK, "traffic": {"1": 0.9, "2": 0.1}})
    fake.will_answer(200, {**TASK, "traffic": None})
    ask("upload", "e2e", b"x", serve=False)
    ask("upload_text", "e2e", "x", serve=False)
    assert [received.target for received in fake.received] == ["/tasks/e2e?serve=false"] * 2
    assert ask("split_traffic", "e2e", {1: 0.9, 2: 0.1}).traffic == {1: 0.9, 2: 0.1}
    assert ask("split_traffic", "e2e", None).traffic == {}
    assert [received.json for received in fake.received[2:]] == [{"traffic": {"1": 0.9, "2": 0.1}}, {"traffic": None}]


def test_a_download_gives_the_stored_bytes(fake, ask):
    fake.will_answer(200, b"\x00\xff")
    assert ask("download", "e2e", version=2) == b"\x00\xff"
    assert fake.received[0].target == "/tasks/e2e/prefix?version=2"


def test_a_deletion_answers_nothing(fake, ask):
    fake.will_answer(204)
    assert ask("delete", "e2e") is None
    assert (fake.received[0].method, fake.received[0].target) == ("DELETE", "/tasks/e2e")


def test_the_operators_questions_are_answered(fake, ask):
    described = {"backbone": "pocket", "fingerprint": "00", "num_tasks": 7, "max_input_length": 255, "version": "1"}
    fake.will_answer(200)
    fake.will_answer(200, {"status": "degraded"})
    fake.will_answer(200, described)
    fake.will_answer(200, b"polyprefix_mixed_steps_total 4\n")
    assert ask("health") is None
    assert ask("ready") == "degraded"
    assert ask("info").everything == described
    assert ask("metrics") == "polyprefix_mixed_steps_total 4\n"


@pytest.mark.parametrize("name", ["..", "../metrics", "", "a/b", "a%2fb", "é", "a" * 129, "a b"])
def test_a_name_that_can_be_no_tasks_never_becomes_a_url(fake, ask, name):
    with pytest.raises(InvalidTaskId):
        ask("delete", name)
    assert fake.received == []


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"task_id": "e2e"}', b"null"])
def test_an_answer_that_is_not_the_contracts_says_what_came(fake, ask, body):
    fake.will_answer(200, body)
    with pytest.raises(UnexpectedAnswer, match="generate"):
        ask("generate", "e2e", "x")


def test_the_key_goes_out_as_a_bearer_token(fake):
    fake.will_answer(200)
    with Client(fake.url, api_key="secret") as client:
        client.health()
    assert fake.received[0].headers["authorization"] == "Bearer secret"


def test_a_base_url_may_have_a_path(fake):
    fake.will_answer(200)
    with Client(f"{fake.url}/under/here/") as client:
        client.health()
    assert fake.received[0].target == "/under/here/health"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_clients_method_tells_its_name_its_parameters_and_what_it_does(kind):
    upload = kind().upload
    assert upload.__name__ == "upload"
    assert "next version" in inspect.getdoc(upload)
    assert list(inspect.signature(upload).parameters) == [
        "task",
        "file",
        "serve",
        "progress",
        "if_match",
        "if_none_match",
    ]


def test_to_close_a_client_again_does_nothing(fake):
    fake.will_answer(200, GENERATION)
    client = Client(fake.url)
    client.close()  # before its thread has started
    with Client(fake.url) as client:
        client.generate("e2e", "name : X")
        client.close()
    client.close()


def test_two_threads_may_close_a_client_at_once(fake):
    fake.will_answer(200, GENERATION)
    client, both = Client(fake.url), Barrier(2)
    client.generate("e2e", "name : X")

    def close():
        both.wait()
        client.close()

    with ThreadPoolExecutor(2) as threads:
        for closing in [threads.submit(close) for _ in range(2)]:
            closing.result()


def test_a_closed_client_says_so(fake):
    fake.will_answer(200, TASK)
    client = Client(fake.url)
    client.task("e2e")
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed; make another one"):
        client.task("e2e")
