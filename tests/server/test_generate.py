"""The generate routes, over HTTP, on an engine that answers a prompt with itself."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import Running
from tests.server.fakes import EchoEngine, Gate


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]


def stream(server: Running, inputs: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = server.http.post("/generate_stream", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def test_the_answer_is_one_object_without_details(server: Running) -> None:
    assert server.generate("the sea") == {"generated_text": "the sea", "task_id": None, "version": None}


def test_the_root_answers_a_list_of_one(server: Running) -> None:
    assert server.http.post("/", json={"inputs": "hi"}).json()[0]["generated_text"] == "hi"


def test_details_tell_tokens_counts_and_the_steps_that_held_the_row(server: Running) -> None:
    details = server.generate("ab", details=True)["details"]
    assert details["finish_reason"] == "eos_token"
    assert [token["text"] for token in details["tokens"]] == ["a", "b", ""]
    assert [token["special"] for token in details["tokens"]] == [False, False, True]
    assert (details["prompt_tokens"], details["generated_tokens"], details["prefix_tokens"]) == (2, 3, 0)
    first, last = details["steps"]
    assert last - first == 2
    assert details["prefill"] == []
    assert details["best_of_sequences"] is None
    assert details["top_tokens"] is None


@pytest.mark.parametrize("text", ["Hello Us", "an User"])
def test_who_leaves_special_tokens_out_has_the_whole_text(server: Running, text: str) -> None:
    """What was held back, as it might begin a stop string, comes with the token that ends the text."""
    answer = server.generate(text, stop=["User:"], details=True)
    assert answer["generated_text"] == text
    assert "".join(token["text"] for token in answer["details"]["tokens"] if not token["special"]) == text


def test_headers_tell_counts_and_times(server: Running) -> None:
    server.upload("poet")
    answer = server.http.post("/generate", json={"task_id": "poet", "inputs": "ab"}, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-task-version"] == "1"
    assert answer.headers["x-prompt-tokens"] == "2"
    assert answer.headers["x-prefix-tokens"] == "3"
    assert answer.headers["x-generated-tokens"] == "7"
    for name in ("x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert float(answer.headers[name]) >= 0


def test_a_long_or_unprintable_request_id_is_replaced(server: Running) -> None:
    for given in ("x" * 129, "two words"):
        assert server.http.get("/ping", headers={"x-request-id": given}).headers["x-request-id"] != given


def test_the_joined_events_are_the_generated_text(server: Running) -> None:
    events = stream(server, "thé ☃ sea 🌊")
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert "".join(event["token"]["text"] for event in events) == "thé ☃ sea 🌊" == events[-1]["generated_text"]
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    assert events[-1]["details"]["finish_reason"] == "eos_token"
    assert events[-1]["details"]["input_length"] == events[-1]["details"]["prompt_tokens"]


def test_a_stream_is_ascii_and_has_no_done(server: Running) -> None:
    answer = server.http.post("/generate", json={"inputs": "a\u2028b\u0085☃", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.isascii()
    assert b"[DONE]" not in answer.content
    assert events_of(answer.text)[-1]["generated_text"] == "a\u2028b\u0085☃"


def test_an_unfinished_character_is_held_back_and_given_out_at_the_end(server: Running) -> None:
    texts = [event["token"]["text"] for event in stream(server, "☃", max_new_tokens=2)]
    assert texts == ["", "\ufffd"]


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(server: Running) -> None:
    answer = server.generate("one two three", stop=["two"], details=True)
    assert answer["generated_text"] == "one "
    assert answer["details"]["finish_reason"] == "stop_sequence"
    events = stream(server, "one two three", stop=["two"])
    assert "".join(event["token"]["text"] for event in events) == "one " == events[-1]["generated_text"]
    assert len(events) == len("one two")


def test_text_that_may_still_become_a_stop_string_is_held_back(server: Running) -> None:
    texts = [event["token"]["text"] for event in stream(server, "a twig", stop=["two"])]
    assert texts == ["a", " ", "", "", "twi", "g", ""]


def test_held_back_text_comes_with_the_last_event(server: Running) -> None:
    events = stream(server, "a tw", stop=["two"])
    assert [event["token"]["text"] for event in events] == ["a", " ", "", "", "tw"]
    assert events[-1]["generated_text"] == "a tw"


def test_a_stop_string_frees_the_slot(start: Callable[..., Running]) -> None:
    gate = Gate()
    gate.allow(len("one two"))
    server = start(EchoEngine(before_step=gate))
    assert server.generate("one two three", stop=["two"])["generated_text"] == "one "
    gate.allow(1)
    assert server.engine.has_aborted.wait(20)
    gate.open()
    assert server.engine.num_free_slots == server.engine.max_num_seqs


def test_the_best_of_several_samples_is_answered_and_the_others_are_told(server: Running) -> None:
    details = server.generate("ab", best_of=3, do_sample=True, seed=5, details=True)["details"]
    assert details["tokens"][0]["logprob"] == -1.0
    assert [each["tokens"][0]["logprob"] for each in details["best_of_sequences"]] == [-2.0, -3.0]
    assert details["seed"] == 5


def test_a_sampled_row_tells_the_seed_that_was_drawn(server: Running) -> None:
    assert server.generate("ab", do_sample=True, details=True)["details"]["seed"] is not None
    assert server.generate("ab", details=True)["details"]["seed"] is None


def test_top_tokens_and_prompt_logprobs_come_when_asked_for(server: Running) -> None:
    details = server.generate("ab", top_n_tokens=2, decoder_input_details=True, details=True)["details"]
    assert [[top["logprob"] for top in tops] for tops in details["top_tokens"]] == [[-1.0, -2.0]] * 3
    assert [entry["logprob"] for entry in details["prefill"]] == [None, -2.0]
    assert [entry["text"] for entry in details["prefill"]] == ["a", "b"]
    assert len(stream(server, "ab", top_n_tokens=2)[0]["top_tokens"]) == 2


def test_the_full_text_holds_the_inputs(server: Running) -> None:
    assert server.generate("ab", return_full_text=True)["generated_text"] == "abab"


def test_a_truncated_prompt_keeps_its_end(server: Running) -> None:
    assert server.generate("abcdef", truncate=2)["generated_text"] == "ef"


@pytest.mark.parametrize("inputs", ["", None])
def test_an_empty_prompt_is_the_end_of_text_token(server: Running, inputs: str | None) -> None:
    answer = server.http.post("/generate", json={"inputs": inputs, "parameters": {"details": True}})
    assert answer.json()["details"]["prompt_tokens"] == 1


def test_every_field_may_be_null_and_unknown_ones_are_ignored(server: Running) -> None:
    names = "max_new_tokens min_new_tokens do_sample temperature top_k top_p repetition_penalty seed stop num_beams"
    names += " length_penalty early_stopping best_of truncate details return_full_text top_n_tokens task_id adapter_id"
    names += " decoder_input_details typical_p grammar watermark merged_adapters logit_bias frequency_penalty"
    parameters = {**dict.fromkeys(names.split()), "adapter_source": "hub", "watermark": False, "who": {"knows": [1]}}
    body = {"inputs": "hi", "task_id": None, "stream": None, "parameters": parameters, "model": 7}
    assert server.http.post("/generate", json=body).status_code == 200
    assert server.http.post("/generate", json={"inputs": "hi", "parameters": None}).status_code == 200


@pytest.mark.parametrize("name", ["task", "taskid", "adapter_id", "max_new_tokens"])
def test_what_would_be_passed_over_where_it_stands_is_refused_with_its_place(server: Running, name: str) -> None:
    """Else a task by another name is the bare backbone, and a parameter beside the inputs changes nothing."""
    answer = server.http.post("/generate", json={"inputs": "hi", name: "poet"})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert re.search("name the task as task_id|belongs in parameters", answer.json()["error"])
    assert "Value error" not in answer.json()["error"]
    assert server.http.post("/generate", json={"inputs": "hi", name: None}).status_code == 200
    if name in ("task", "adapter_id"):
        body = {"inputs": "hi", "continuations": ["a"], name: "poet"}
        assert server.http.post("/score", json=body).status_code == 422


def test_without_max_new_tokens_it_is_64_or_what_the_context_leaves(server: Running) -> None:
    assert server.generate("a" * 64, details=True)["details"]["generated_tokens"] == 64
    assert server.generate("a" * 100, details=True)["details"]["generated_tokens"] == 28
    assert "the backbone has 128" in server.generate("a" * 128, status=422)["error"]


def test_a_task_answers_with_its_prefix_in_every_dialect(server: Running) -> None:
    server.upload("poet")
    bare = server.generate("ab")["generated_text"]
    ways = [
        server.http.post("/generate", json={"inputs": "ab", "task_id": "poet"}).json(),
        server.generate("ab", adapter_id="poet"),
        server.generate("ab", task_id="poet"),
        server.http.post("/tasks/poet/generate", json={"inputs": "ab"}).json(),
        server.http.post("/tasks/poet", json={"inputs": "ab"}).json()[0],
    ]
    assert all(way == ways[0] for way in ways)
    assert ways[0]["generated_text"].endswith("ab")
    assert ways[0]["generated_text"] != bare
    assert (ways[0]["task_id"], ways[0]["version"]) == ("poet", 1)
    streamed = server.http.post("/tasks/poet/generate_stream", json={"inputs": "ab"}).text
    assert events_of(streamed)[-1]["generated_text"] == ways[0]["generated_text"]


@pytest.mark.parametrize("name", ["", "base", "tgi", "tiny"])
def test_the_backbones_names_mean_no_prefix(server: Running, name: str) -> None:
    answer = server.http.post("/generate", json={"inputs": "ab", "task_id": name})
    assert answer.json() == {"generated_text": "ab", "task_id": None, "version": None}


@pytest.mark.parametrize("name", ["nobody", "../etc/passwd", "a\u0000b", "x" * 129, "☃", ".hidden"])
def test_an_unknown_task_is_404_always(server: Running, name: str) -> None:
    answer = server.http.post("/generate", json={"inputs": "ab", "task_id": name})
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_two_tasks_that_differ_are_refused(server: Running) -> None:
    server.upload("poet")
    bodies = [
        {"inputs": "a", "task_id": "poet", "parameters": {"adapter_id": "clerk"}},
        {"inputs": "a", "task_id": "poet", "parameters": {"task_id": "base"}},
    ]
    assert [server.http.post("/generate", json=body).status_code for body in bodies] == [422, 422]
    assert server.http.post("/tasks/poet/generate", json={"inputs": "a", "task_id": "clerk"}).status_code == 422
    assert server.http.post("/tasks/poet/generate", json={"inputs": "a", "task_id": "poet"}).status_code == 200


def test_a_tasks_defaults_apply_and_the_requests_own_values_win(server: Running) -> None:
    server.upload("chef")
    config = {"prompt_template": "<{inputs}{0}>", "parameters": {"max_new_tokens": 8, "stop": [">"]}}
    assert server.http.patch("/tasks/chef", json={"config": config}).status_code == 200
    prefix = server.generate("", adapter_id="chef", max_new_tokens=4)["generated_text"]
    assert server.generate("{x}", adapter_id="chef")["generated_text"] == prefix + "<{x}"
    long = server.generate("{x}", adapter_id="chef", max_new_tokens=30, stop=[])["generated_text"]
    assert long == prefix + "<{x}{0}"


def test_the_same_request_id_from_two_callers_is_answered_twice(server: Running) -> None:
    for _ in range(2):
        answer = server.http.post("/generate", json={"inputs": "ab"}, headers={"x-request-id": "same"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"max_new_tokens": 10**9},
        {"max_new_tokens": True},
        {"max_new_tokens": "5"},
        {"max_new_tokens": 1.5},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"temperature": -1},
        {"temperature": 10**400},
        {"top_k": -1},
        {"top_k": 257},
        {"top_p": 0},
        {"top_p": 1.0001},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**64},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"stop": ["a" * 65]},
        {"stop": "a"},
        {"num_beams": 17},
        {"best_of": 17},
        {"top_n_tokens": 21},
        {"truncate": 0},
        {"do_sample": 1},
        {"num_beams": 2, "do_sample": True},
        {"num_beams": 2, "best_of": 2},
        {"grammar": {"type": "regex"}},
        {"watermark": True},
        {"merged_adapters": {}},
        {"typical_p": 0.9},
        {"frequency_penalty": 0.1},
        {"presence_penalty": 0.1},
        {"logit_bias": {"5": 1}},
    ],
)
def test_a_value_that_cannot_be_served_is_refused(server: Running, parameters: dict[str, Any]) -> None:
    error = server.generate("ab", status=422, **parameters)
    assert error["error_type"] == "validation"
    assert next(reversed(parameters)).partition("_")[0] in error["error"] or "tokens" in error["error"]


@pytest.mark.parametrize("parameters", [{"num_beams": 2}, {"best_of": 2}, {"decoder_input_details": True}])
def test_what_cannot_be_streamed_is_refused_before_the_200(server: Running, parameters: dict[str, Any]) -> None:
    answer = server.http.post("/generate_stream", json={"inputs": "ab", "parameters": parameters})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_a_prompt_over_the_limit_is_refused_before_tokenizing(server: Running) -> None:
    assert "at most 32768" in server.generate("☃" * 10923, status=422)["error"]
    assert "the backbone has" in server.generate("a" * 31 * 1024, status=422)["error"]


def test_a_failing_row_is_424_and_its_neighbour_is_answered(server: Running) -> None:
    error = server.generate("\x07", status=424)
    assert error == {"error": "the model gave numbers that are not finite", "error_type": "generation"}
    assert server.generate("fine")["generated_text"] == "fine"


def test_a_stream_that_fails_before_its_first_token_is_an_ordinary_error(server: Running) -> None:
    answer = server.http.post("/generate_stream", json={"inputs": "\x07"})
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")


def test_a_stream_that_fails_later_ends_with_an_error_event(server: Running) -> None:
    events = stream(server, "ab\x07cd")
    assert [event["token"]["text"] for event in events[:-1]] == ["a", "b"]
    assert events[-1] == {"error": "the model gave numbers that are not finite", "error_type": "generation"}
