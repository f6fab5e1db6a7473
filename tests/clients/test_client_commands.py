"""The commands for people and scripts, run in this process against the fake server."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from clients import cli
from tests.clients.test_client_stream import FIRST, LAST
from tests.clients.test_client_verbs import GENERATION, TASK, VERSION


@pytest.fixture
def run(fake) -> Callable[..., Result]:
    """Runs one command function with the arguments that a terminal would give it."""

    def run(
        command: Callable[..., Any], *arguments: str, stdin: str | bytes | None = None, **environment: str
    ) -> Result:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, arguments, input=stdin, env={"POLYPREFIX_URL": fake.url, **environment})

    return run


@pytest.fixture
def prefix_file(tmp_path: Path) -> str:
    path = tmp_path / "e2e.safetensors"
    path.write_bytes(b"x" * 100_000)
    return str(path)


def test_upload_shows_its_progress_and_the_version(fake, run, prefix_file):
    fake.will_answer(201, {"task_id": "e2e", **VERSION})
    result = run(cli.upload, "e2e", prefix_file)
    assert result.exit_code == 0
    assert result.stdout == "e2e: version 2, prefix, 10 virtual tokens\n"
    assert "100%" in result.stderr or "97.7/97.7 KiB" in result.stderr


def test_upload_may_keep_a_version_without_serving_it(fake, run, prefix_file):
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    assert run(cli.upload, "e2e", prefix_file, "--no-serve").exit_code == 0
    assert fake.received[0].target == "/tasks/e2e?serve=false"


def test_upload_gives_a_task_without_a_template_that_of_the_file(fake, run, tmp_path):
    header = json.dumps({"__metadata__": {"prompt_template": "Q: {inputs}"}}).encode()
    trained = tmp_path / "e2e.safetensors"
    trained.write_bytes(len(header).to_bytes(8, "little") + header)
    fake.will_answer(201, {"task_id": "e2e", **VERSION})
    fake.will_answer(200, TASK)
    fake.will_answer(200, TASK)
    result = run(cli.upload, "e2e", str(trained))
    assert "e2e: prompt template 'Q: {inputs}', which the file was trained with\n" in result.stdout
    assert fake.received[0].target == "/tasks/e2e?serve=false", "not a moment without its template"
    at_once = {"version": 2, "config": {"prompt_template": "Q: {inputs}"}}
    assert (fake.received[2].method, fake.received[2].json) == ("PATCH", at_once)
    has_one = TASK | {"config": {**TASK["config"], "prompt_template": "A: {inputs}"}}
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    fake.will_answer(200, has_one)
    fake.will_answer(200, has_one)
    assert "template" not in run(cli.upload, "e2e", str(trained)).stdout
    assert fake.received[5].json == {"version": 2}
    fake.will_answer(200, {"task_id": "e2e", **VERSION})
    assert run(cli.upload, "e2e", str(trained), "--no-serve").exit_code == 0
    assert [request.method for request in fake.received[3:]] == ["PUT", "GET", "PATCH", "PUT"]


def test_upload_takes_a_text_in_place_of_a_file(fake, run, prefix_file):
    fake.will_answer(201, {"task_id": "e2e", **VERSION, "kind": "text"})
    assert run(cli.upload, "e2e", "--text", "Answer in rhymes.").stdout == "e2e: version 2, text, 10 virtual tokens\n"
    assert (fake.received[0].target, fake.received[0].json) == ("/tasks/e2e", {"text": "Answer in rhymes."})
    for both_or_none in (["e2e"], ["e2e", prefix_file, "--text", "x"]):
        result = run(cli.upload, *both_or_none)
        assert (result.exit_code, "give one of the two" in result.stderr) == (2, True)
    assert len(fake.received) == 1


def test_task_shows_its_versions_with_their_shares_and_its_defaults(fake, run):
    config = {
        "description": "[b]rhymes\x1b",
        "prompt_template": "{inputs}\n",
        "chat_template": None,
        "parameters": {"seed": 1},
    }
    versions = [VERSION | {"version": 1, "stale": True}, VERSION | {"quarantined": "a damaged file"}]
    fake.will_answer(200, TASK | {"versions": versions, "traffic": {"1": 1, "2": 3}, "config": config})
    lines = run(cli.task, "e2e").stdout.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[:2] for row in rows] == [["1", "25 %"], ["2", "75 %"]]
    assert lines[-5:] == [
        "version 1: made for another backbone",
        "version 2: a damaged file",
        "description: [b]rhymes\N{REPLACEMENT CHARACTER}",
        "prompt template: '{inputs}\\n'",
        'parameters: {"seed": 1}',
    ]
    fake.will_answer(200, TASK)
    assert json.loads(run(cli.task, "e2e", "--json").stdout) == TASK
    assert [request.method for request in fake.received] == ["GET", "GET"]


@pytest.mark.parametrize(
    ("own", "told"), [(True, "every tenant may use it"), (False, "another tenant's; use it, no more")]
)
def test_task_tells_a_public_one_and_whose_it_is(fake, run, own, told):
    fake.will_answer(200, TASK | {"public": True, "own": own})
    assert f"public: {told}" in run(cli.task, "e2e").stdout.splitlines()


def test_task_changes_all_that_is_named_at_once(fake, run):
    fake.will_answer(200, TASK)
    fake.will_answer(200, TASK)
    fake.will_answer(200, TASK)
    given = ["--version", "1", "--description", "", "--prompt-template", "{inputs} ->", "--parameters", '{"seed": 7}']
    assert run(cli.task, "e2e", *given).exit_code == 0
    config = {"description": "", "prompt_template": "{inputs} ->", "parameters": {"seed": 7}}
    run(cli.task, "e2e", "--traffic", "1=0.9", "--traffic", "2=0.1")
    run(cli.task, "e2e", "--prompt-template", "")
    assert [request.method for request in fake.received] == ["PATCH"] * 3
    assert [request.json for request in fake.received] == [
        {"version": 1, "config": config},
        {"traffic": {"1": 0.9, "2": 0.1}},
        {"config": {"prompt_template": None}},
    ]


@pytest.mark.parametrize(
    "given",
    [
        ["--traffic", "1"],
        ["--traffic", "1=much"],
        ["--traffic", "1=1", "--traffic", "1=2"],
        ["--parameters", "seed=7"],
        ["--parameters", "[7]"],
    ],
)
def test_task_sends_nothing_that_it_cannot_read(fake, run, given):
    result = run(cli.task, "e2e", *given)
    assert (result.exit_code, given[0] in result.stderr) == (2, True)
    assert fake.received == []


def test_upload_of_a_file_that_is_not_there_sends_nothing(fake, run):
    assert run(cli.upload, "e2e", "nowhere.safetensors").exit_code == 2
    assert fake.received == []


def test_generate_prints_the_text_as_it_comes(fake, run):
    fake.will_stream(FIRST, LAST)
    result = run(cli.generate, "e2e", "name : X", "--top-k", "5", "--stop", "a", "--stop", "b", "--seed", "7")
    assert (result.exit_code, result.stdout) == (0, " The sea\n")
    assert fake.received[0].json == {
        "task_id": "e2e",
        "inputs": "name : X",
        "parameters": {"top_k": 5, "stop": ["a", "b"], "seed": 7},
    }


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_each_line_of_standard_input_is_answered_by_a_line_of_json(fake, run, arguments):
    fake.will_answer(200, GENERATION | {"generated_text": "a\u2028b"})
    fake.will_answer(200, GENERATION)
    result = run(cli.generate, "e2e", *arguments, "--concurrency", "1", "--seed", "7", stdin="name : X\r\n\n")
    assert [json.loads(line) for line in result.stdout.split("\n")[:-1]] == [
        GENERATION | {"generated_text": "a\u2028b"},
        GENERATION,
    ]
    assert [received.json["inputs"] for received in fake.received] == ["name : X", ""]
    assert fake.received[0].json["parameters"] == {"seed": 7}


def test_a_line_that_cannot_be_answered_says_why_in_its_place_and_the_others_go_on(fake, run):
    fake.will_answer(422, {"error": "too long", "error_type": "validation"})
    fake.will_answer(200, GENERATION)
    result = run(cli.generate, "e2e", "--concurrency", "1", stdin=b"too long\nnot \xff UTF-8\nname : X\n")
    refused, unreadable, answered = [json.loads(line) for line in result.stdout.splitlines()]
    assert refused == {"error": "too long", "error_type": "validation"}
    assert (unreadable["error_type"], "has no UTF-8 form" in unreadable["error"]) == ("bad_request", True)
    assert answered == GENERATION
    assert (result.exit_code, result.stderr) == (1, "error: 2 of the lines could not be answered\n")


def test_what_is_wrong_with_every_line_ends_the_command_at_once(fake, run):
    fake.will_answer(401, {"error": "no such key", "error_type": "unauthorized"})
    result = run(cli.generate, "e2e", "--concurrency", "1", stdin="a\nb\nc\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no such key (401 unauthorized)\n"


def test_nothing_to_continue_is_told_on_a_terminal(fake, run, monkeypatch):
    monkeypatch.setattr(cli, "standard_input_is_a_terminal", lambda: True)
    result = run(cli.generate, "e2e")
    assert result.exit_code == 2
    assert "pipe lines into it" in result.stderr
    assert fake.received == []


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("e2", "did you mean 'e2e'?"),
        ("HAIKOO", "did you mean 'haiku'?"),
        ("xyz", "`polyprefix tasks` lists those there are"),
    ],
)
def test_an_unknown_task_is_answered_with_the_one_most_like_it(fake, run, typed, advice):
    fake.will_answer(404, {"error": f"no task {typed!r}", "error_type": "not_found"})
    fake.will_answer(200, {"tasks": [TASK], "next": "e2e"})
    fake.will_answer(200, {"tasks": [TASK | {"task_id": "haiku"}], "next": None})
    result = run(cli.delete, typed)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: no task {typed!r} (404 not_found); {advice}\n"


def test_an_argument_that_is_not_utf8_is_one_line_and_sends_nothing(fake, run):
    result = run(cli.generate, "e2e", os.fsdecode(b"a\xff"))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "has no UTF-8 form" in result.stderr
    assert fake.received == []


def test_beams_are_asked_for_without_a_stream(fake, run):
    fake.will_answer(200, GENERATION)
    assert run(cli.generate, "e2e", "x", "--num-beams", "4").stdout == " The sea\n"
    assert fake.received[0].target == "/generate"


def test_json_is_one_object_for_scripts(fake, run, prefix_file):
    fake.will_answer(200, GENERATION)
    fake.will_answer(201, {"task_id": "e2e", **VERSION})
    fake.will_answer(204)
    assert json.loads(run(cli.generate, "e2e", "x", "--json").stdout)["details"]["steps"] == [5, 6]
    uploaded = run(cli.upload, "e2e", prefix_file, "--json")
    assert json.loads(uploaded.stdout) == {"task_id": "e2e", **VERSION}
    assert uploaded.stderr == ""
    assert json.loads(run(cli.delete, "e2e", "--json").stdout) == {"task_id": "e2e", "deleted": True}


def test_tasks_lists_every_page(fake, run):
    fake.will_answer(200, {"tasks": [TASK], "next": "e2e"})
    fake.will_answer(200, {"tasks": [TASK | {"task_id": "haiku"}], "next": None})
    result = run(cli.tasks)
    assert [received.target for received in fake.received] == ["/tasks?limit=1000", "/tasks?limit=1000&after=e2e"]
    assert "e2e" in result.stdout
    assert "haiku" in result.stdout


def test_what_stands_in_a_description_is_shown_and_not_obeyed(fake, run):
    described = TASK | {"config": TASK["config"] | {"description": "[topic] ends with [/INST] :smile: \x1b[2J"}}
    fake.will_answer(200, {"tasks": [described], "next": None})
    result = run(cli.tasks)
    assert result.exit_code == 0, result.output
    assert "[topic] ends with [/INST] :smile: \N{REPLACEMENT CHARACTER}[2J" in result.stdout


def test_a_long_task_id_is_whole_for_who_greps_it(fake, run):
    name = "a-task-of-a-customer-with-a-name-" * 3
    fake.will_answer(200, {"tasks": [TASK | {"task_id": name}], "next": None})
    assert name in run(cli.tasks).stdout


def test_tasks_in_json_are_as_the_server_tells_them(fake, run):
    second = TASK | {"task_id": "haiku"}
    fake.will_answer(200, {"tasks": [TASK], "next": "e2e"})
    fake.will_answer(200, {"tasks": [second], "next": None})
    assert json.loads(run(cli.tasks, "--json").stdout) == [TASK, second]


def test_json_that_is_not_the_contracts_is_an_error(fake, run):
    fake.will_answer(200, {"tasks": [{"task_id": "e2e"}]})
    result = run(cli.tasks, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not one of ours" in result.stderr


def test_delete_says_what_is_gone(fake, run):
    fake.will_answer(204)
    assert run(cli.delete, "e2e").stdout == "e2e: deleted\n"


def test_the_key_comes_from_the_environment(fake, run):
    fake.will_answer(204)
    run(cli.delete, "e2e", POLYPREFIX_API_KEY="secret")
    assert fake.received[0].headers["authorization"] == "Bearer secret"


def test_a_refusal_is_one_line_and_a_status(fake, run):
    fake.will_answer(404, {"error": "no task 'e2e'", "error_type": "not_found"})
    result = run(cli.delete, "e2e")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no task 'e2e' (404 not_found)\n"


def test_a_server_that_is_not_there_is_named_with_what_to_do(run):
    result = run(cli.tasks, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    for part in ("http://127.0.0.1:9", "refused", "polyprefix serve", "--url"):
        assert part in result.stderr


def test_an_error_in_the_middle_of_the_text_is_not_a_success_and_begins_its_own_line(fake, run):
    fake.will_stream(FIRST, b'data: {"error": "not finite", "error_type": "generation"}\n\n')
    result = run(cli.generate, "e2e", "x")
    assert result.exit_code == 1
    assert result.output == " The\nerror: not finite (424 generation)\n"


def test_a_refusal_before_the_text_prints_no_empty_line(fake, run):
    fake.will_answer(404, {"error": "no task 'e2e'", "error_type": "not_found"})
    result = run(cli.generate, "e2e", "x")
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_url_without_http_is_told_to_add_it(run):
    result = run(cli.tasks, "--url", "localhost:8000")
    assert result.exit_code == 1
    assert result.stderr == "error: 'localhost:8000' is no server's URL: add http://, as in http://localhost:8000\n"
