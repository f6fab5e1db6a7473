"""What shells are told when somebody presses Tab: the command as a process, as the shells' own scripts call it."""

import os
import subprocess
import sys

import pytest

from tests.clients.test_client_verbs import TASK

BASH = {"_POLYPREFIX_COMPLETE": "complete_bash"}
FISH = {"_POLYPREFIX_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def complete(line: str, **environment: str) -> str:
    """What bash shows for the line, of which the last word is not yet whole."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return run(BASH | words | environment)


def run(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "polyprefix", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_commands_are_completed_by_name():
    assert complete("polyprefix ge") == "generate\n"


def test_a_commands_own_options_are_completed_though_it_is_loaded_late():
    assert complete("polyprefix generate --max") == "--max-new-tokens\n"


def test_fish_is_told_the_options_too():
    assert run(FISH | {"_TYPER_COMPLETE_ARGS": "polyprefix generate --max"}).startswith("--max-new-tokens")


def test_tasks_are_completed_by_asking_the_server(fake):
    fake.will_answer(200, {"tasks": [TASK, TASK | {"task_id": "haiku"}], "next": None})
    assert complete("polyprefix generate ha", POLYPREFIX_URL=fake.url, POLYPREFIX_API_KEY="secret") == "haiku\n"
    assert fake.received[0].headers["authorization"] == "Bearer secret"


def test_a_server_that_is_not_there_completes_nothing_and_says_nothing():
    assert complete("polyprefix delete ha", POLYPREFIX_URL="http://127.0.0.1:9").strip() == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell):
    assert "_POLYPREFIX_COMPLETE" in run(
        {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}, "--show-completion", shell
    )
