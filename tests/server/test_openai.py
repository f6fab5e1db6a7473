"""OpenAI's routes, as bytes over HTTP, on an engine that answers a prompt with itself."""

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from prefix_store.tenants import Tenant, TenantLimits
from tests.server.conftest import Guarded, Running, prefix_file
from tests.server.fakes import EchoEngine, Gate
from tests.server.test_operations import metric

CHAT_TEMPLATE = {"system": "[{content}]", "user": "<{content}>", "assistant": "={content};"}


def complete(server: Running, prompt: Any, status: int = 200, **fields: Any) -> Any:
    body = {"model": "tiny", "temperature": 0, "prompt": prompt, **fields}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def stream(server: Running, prompt: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "tiny", "temperature": 0, "prompt": prompt, "stream": True, **fields}
    return chunks_of(server.http.post("/v1/completions", json=body))


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream that is whole."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.isascii()
    *events, done, nothing = answer.content.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def texts_of(chunks: list[dict[str, Any]], num_choices: int = 1) -> list[str]:
    """Each choice's text, put together."""
    texts = [""] * num_choices
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def test_a_completion_has_openais_form(server: Running) -> None:
    answer = complete(server, "the sea", logprobs=None)
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "choices": [{"index": 0, "text": "the sea", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15},
    }


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
        ("", [""]),
        (None, [""]),
    ],
)
def test_a_prompt_is_a_text_or_token_ids_or_several(server: Running, prompt: Any, texts: list[str]) -> None:
    answer = complete(server, prompt)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))


def test_openais_defaults_are_16_tokens_and_temperature_1(start: Callable[..., Running]) -> None:
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    prompt = "a" * 40
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        body = json.dumps({"model": "tiny", "prompt": prompt}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        gate.wait_until_held()
        gate.allow(1)
        gate.wait_until_held()
        params = server.engine.running[0].request.sampling_params
        assert (params.max_new_tokens, params.temperature) == (16, 1.0)


def test_a_tasks_own_defaults_come_before_openais(server: Running) -> None:
    server.upload("careful")
    config = {"parameters": {"max_new_tokens": 3, "num_beams": 2}, "prompt_template": "-{inputs}"}
    server.http.patch("/tasks/careful", json={"config": config})
    answer = server.http.post("/v1/completions", json={"model": "careful", "prompt": "ab"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert answer.headers["x-task-version"] == "1"


def test_a_stream_of_a_task_that_searches_by_default_is_greedy(real: Running) -> None:
    """And not what OpenAI's defaults would make of a request that says nothing."""
    real.upload("careful")
    real.http.patch("/tasks/careful", json={"config": {"parameters": {"num_beams": 2}}})

    def streamed(**said: object) -> str:
        body = {"model": "careful", "prompt": "ab", "max_tokens": 12, "stream": True, **said}
        return "".join(chunk["choices"][0]["text"] for chunk in chunks_of(real.http.post("/v1/completions", json=body)))

    assert streamed() == streamed(temperature=0)


def test_n_choices_of_each_prompt_come_in_order(server: Running) -> None:
    answer = complete(server, ["ab", "c"], n=2, temperature=1, seed=5, logprobs=0)
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "c", "c"]
    assert [choice["logprobs"]["token_logprobs"][0] for choice in answer["choices"]] == [-1.0, -2.0, -1.0, -2.0]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 10, "total_tokens": 13}


def test_the_best_of_several_are_chosen_and_all_are_counted(server: Running) -> None:
    answer = complete(server, "ab", n=2, best_of=3, temperature=1, logprobs=0)
    assert [choice["logprobs"]["token_logprobs"][0] for choice in answer["choices"]] == [-1.0, -2.0]
    assert answer["usage"]["completion_tokens"] == 9


def test_logprobs_name_the_tokens_and_their_places(server: Running) -> None:
    logprobs = complete(server, "aé", logprobs=2, max_tokens=3)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd"]
    assert logprobs["token_logprobs"] == [-1.0, -1.0, -1.0]
    assert logprobs["top_logprobs"][0] == {"a": -1.0, "b": -2.0}
    assert logprobs["text_offset"] == [0, 1, 1]


def test_echo_gives_the_prompt_with_its_logprobs(server: Running) -> None:
    choice = complete(server, "abc", echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert choice["text"] == "abca"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "a"]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0, -1.0]
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": -2.0}, {"c": -2.0}, {"a": -1.0}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert complete(server, [97, 98], echo=True)["choices"][0]["text"] == "abab"


def test_a_stream_is_chunks_and_then_done(server: Running) -> None:
    chunks = stream(server, "ab")
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_streams_usage_comes_in_a_last_chunk_without_choices(server: Running) -> None:
    *chunks, last = stream(server, "ab", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_a_stream_of_several_choices_tells_them_apart(server: Running) -> None:
    chunks = stream(server, ["ab", "thé ☃"], n=2, temperature=1)
    assert texts_of(chunks, 4) == ["ab", "ab", "thé ☃", "thé ☃"]


def test_a_streams_pieces_are_the_whole_answer(server: Running) -> None:
    fields = {"echo": True, "logprobs": 2, "stop": ["ee"]}
    prompt = "a\u2028b\u0085 שלום 🌊 three"
    whole = complete(server, prompt, **fields, max_tokens=60)["choices"][0]
    choices = [chunk["choices"][0] for chunk in stream(server, prompt, **fields, max_tokens=60)]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == prompt + prompt[:-2]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for choice in choices for value in choice["logprobs"][name]] == whole["logprobs"][name]
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "stop"


def test_stop_may_be_one_string(server: Running) -> None:
    choice = complete(server, "one two three", stop="two")["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one ", "stop")
    assert complete(server, "abc", max_tokens=2)["choices"][0]["finish_reason"] == "length"


def test_all_rows_of_a_request_enter_one_batch(start: Callable[..., Running]) -> None:
    server = start(EchoEngine(max_num_seqs=8))
    complete(server, ["ab", "cd", "ef", "gh"], n=2, temperature=1)
    assert metric(server, "steps_total") == 3
    assert metric(server, "step_rows_sum") == 24


def test_a_row_that_stopped_frees_its_slot_while_the_others_go_on(start: Callable[..., Running]) -> None:
    gate = Gate()
    server = start(EchoEngine(max_num_seqs=2, before_step=gate))
    gate.allow(len("ab!"))
    body = {"model": "tiny", "prompt": ["ab!cdefgh", "abcdefghi"], "stop": "!", "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # kept: when it goes, the connection does
        assert any('"finish_reason":"stop"' in line for line in lines)
        gate.allow(1)
        assert server.engine.has_aborted.wait(20)
        gate.wait_until_held()
        assert len(server.engine.running) == 1
        gate.open()


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_ends_all_its_rows(start: Callable[..., Running], streams: bool) -> None:
    gate = Gate()
    server = start(EchoEngine(before_step=gate))
    body = json.dumps({"model": "tiny", "prompt": ["abcdefgh"] * 6, "stream": streams}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        server.wait_for_open_rows(6)
        gate.allow(2)
        gate.wait_until_held()
    server.wait_for_open_rows(0)
    gate.open()
    assert complete(server, "ab")["choices"][0]["text"] == "ab"
    assert len(server.engine.aborted) == 6


def test_a_row_that_fails_ends_the_request_with_an_error(server: Running) -> None:
    error = complete(server, ["ab", "a\x07"], status=424)["error"]
    assert error["code"] == "generation"


def test_a_failure_in_a_stream_is_its_last_event(server: Running) -> None:
    answer = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "ab\x07", "stream": True})
    *_, last, nothing = answer.text.split("\n\n")
    assert nothing == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "generation"
    assert "[DONE]" not in answer.text


def test_an_unknown_model_is_not_found(server: Running) -> None:
    for name in ("nobody", "../etc", "x" * 500):
        answer = server.http.post("/v1/completions", json={"model": name, "prompt": "ab"})
        error = answer.json()["error"]
        assert answer.status_code == 404
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
        assert name[:65] not in error["message"] or len(name) < 65


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [1.5] * 20_000}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, None),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1000}, None),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": 2, "temperature": 0}, None),
        ({"n": 2, "best_of": 1}, None),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"suffix": "x"}, None),
        ({"logit_bias": {"5": 1}}, None),
        ({"frequency_penalty": 0.5}, None),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_served_is_refused(server: Running, fields: dict[str, Any], param: str | None) -> None:
    body = {"model": "tiny", "prompt": "ab", **fields}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "validation", param)
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("status", "code", "options"),
    [
        (400, "bad_request", {"content": b'{"model": '}),
        (422, "validation", {"content": b'{"model": "tiny", "model": "tiny", "prompt": "a"}'}),
        (422, "validation", {"content": b'{"model": "tiny", "prompt": "a", "temperature": NaN}'}),
        (413, "too_large", {"content": b'"' + b"a" * (300 << 10) + b'"'}),
        (415, "unsupported_media_type", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
    ],
)
def test_bodies_are_read_as_strictly_as_ours(server: Running, status: int, code: str, options: dict[str, Any]) -> None:
    answer = server.http.post("/v1/completions", **{"headers": {"content-type": "application/json"}, **options})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "of_another_dialect",
    [
        {"top_k": 5}, {"repetition_penalty": 1.5}, {"grammar": {"type": "regex", "value": "a"}}, {"guided_regex": "a"},
        {"adapter_id": "poet"}, {"max_new_tokens": 3}, {"min_tokens": 2}, {"typical_p": 0.5},
    ],
)  # fmt: skip
def test_what_would_change_the_text_elsewhere_is_refused_and_not_passed_over(
    server: Running, of_another_dialect: dict[str, Any]
) -> None:
    (name,) = of_another_dialect
    assert name in complete(server, "ab", status=422, **of_another_dialect)["error"]["message"]


def test_what_changes_nothing_is_passed_over(server: Running) -> None:
    neutral = {"top_k": 0, "repetition_penalty": 1.0, "min_p": 0.0, "guided_json": None, "a_newer_field": 7}
    assert complete(server, "ab", **neutral)["choices"][0]["text"] == "ab"
    assert complete(server, "ab", best_of=2, temperature=1)["choices"][0]["text"] == "ab"


def test_routes_that_are_not_there_answer_in_openais_form(server: Running) -> None:
    assert server.http.post("/v1/embeddings", json={}).json()["error"]["code"] == "not_found"
    wrong_method = server.http.get("/v1/completions")
    assert wrong_method.json()["error"]["code"] == "method_not_allowed"
    assert wrong_method.headers["allow"] == "POST"


def test_keys_and_limits_hold_as_for_generate(start_guarded: Callable[..., Guarded]) -> None:
    limits = TenantLimits(requests_per_minute=2)
    house = start_guarded(Tenant(name="acme", limits=limits), Tenant(name="other"))
    body = {"model": "base", "prompt": ["ab", "c"]}
    refused = house.server.http.post("/v1/completions", json=body)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert house.ask("acme/tasks", "POST", "/v1/completions", json=body).json()["error"]["code"] == "forbidden"
    for _ in range(2):
        assert house.ask("acme/generate", "POST", "/v1/completions", json=body).status_code == 200
    limited = house.ask("acme/generate", "POST", "/v1/completions", json=body)
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) > 0
    assert limited.json()["error"]["code"] == "rate_limit_exceeded"
    house.server.services.store.usage.flush()
    (used,) = house.ask("acme/generate", "GET", "/usage").json()["usage"]
    assert (used["requests"], used["prompt_tokens"], used["generated_tokens"]) == (2, 6, 10)


def test_models_are_the_backbone_and_what_the_key_may_see(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="acme"), Tenant(name="other"))
    house.ask("acme/tasks", "PUT", "/tasks/poet", content=prefix_file())
    listed = house.ask("acme/generate", "GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["root"], model["parent"]) for model in listed["data"]] == [
        ("tiny", "tiny", None),
        ("poet", "tiny", "tiny"),
    ]
    assert house.ask("acme/generate", "GET", "/v1/models/poet").json() == listed["data"][1]
    assert house.ask("acme/generate", "GET", "/v1/models/tiny").json() == listed["data"][0]
    assert [model["id"] for model in house.ask("other/generate", "GET", "/v1/models").json()["data"]] == ["tiny"]
    hidden = house.ask("other/generate", "GET", "/v1/models/poet")
    absent = house.ask("other/generate", "GET", "/v1/models/tepo")
    assert hidden.status_code == absent.status_code == 404
    assert hidden.text.replace("poet", "tepo") == absent.text
    assert house.ask("other/generate", "GET", "/v1/models/some one").json()["error"]["code"] == "model_not_found"


@pytest.fixture(scope="module")
def talker(server: Running) -> Running:
    """The server with a task that can chat."""
    server.upload("talker")
    config = {"chat_template": CHAT_TEMPLATE, "parameters": {"do_sample": False}}
    answer = server.http.patch("/tasks/talker", json={"config": config})
    assert answer.json()["config"]["chat_template"] == CHAT_TEMPLATE
    return server


MESSAGES = [
    {"role": "system", "content": "be {content}"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
WRITTEN = "[be {content}]<ab>=c;<d>="


def chat(server: Running, status: int = 200, **fields: Any) -> httpx.Response:
    answer = server.http.post("/v1/chat/completions", json={"model": "talker", "messages": MESSAGES, **fields})
    assert answer.status_code == status, answer.text
    return answer


def test_a_chat_is_written_by_the_tasks_templates(talker: Running) -> None:
    answer = chat(talker, logprobs=True, top_logprobs=2).json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].endswith(WRITTEN)
    assert choice["finish_reason"] == "stop"
    score = choice["logprobs"]["content"][-2]
    assert (score["token"], score["logprob"], score["bytes"]) == ("=", -1.0, [61])
    assert [top["token"] for top in score["top_logprobs"]] == ["=", ">"]
    assert answer["usage"]["prompt_tokens"] == len(WRITTEN)


def test_a_chat_is_streamed(talker: Running) -> None:
    chunks = chunks_of(chat(talker, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in parts]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta["content"] for delta in deltas).endswith(WRITTEN)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert last["usage"]["prompt_tokens"] == len(WRITTEN)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "tiny"},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json"}},
        {"top_logprobs": 2},
    ],
)
def test_a_chat_that_cannot_be_served_is_refused(talker: Running, fields: dict[str, Any]) -> None:
    assert chat(talker, status=422, **fields).json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "template",
    [
        {"system": "{content}", "user": "{content}"},
        {**CHAT_TEMPLATE, "user": "no place"},
        {**CHAT_TEMPLATE, "user": "{content}{content}"},
        {**CHAT_TEMPLATE, "tool": "{content}"},
        {**CHAT_TEMPLATE, "user": "{content}" + "a" * 8192},
        "{content}",
    ],
)
def test_a_chat_template_has_three_strings_with_one_place_each(talker: Running, template: Any) -> None:
    answer = talker.http.patch("/tasks/talker", json={"config": {"chat_template": template}})
    assert answer.status_code == 422
    assert talker.http.get("/tasks/talker").json()["config"]["chat_template"] == CHAT_TEMPLATE
