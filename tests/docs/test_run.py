"""The commands of the documents that need no GPU, no cluster and no hour are run, page by page, as a reader types them.

Every other one has its target, or its reason, in targets.py.
"""

import shutil
from pathlib import Path

import pytest

from tests.docs.commands import COMMANDS, Command, commands_of
from tests.docs.pages import PAGES, Block, blocks_of, name_of
from tests.docs.targets import RULES, By, rule_of, those
from tests.docs.terminal import Terminal
from tests.polyprefix.conftest import find_free_port

RUN = those(COMMANDS, By.HERE)
RUN_PAGES = [page for page in PAGES if any(command.page == name_of(page) for command in RUN)]
WITH_PYTHON = {"README.md", "docs/quickstart.md"}  # other pages' examples are run by tests/clients
MAX_UNRUN = 20
NO_PROGRAMS = {"export"}  # but the shell's own
# What is there before the page's first command, beside the files.
BEFORE = {
    "docs/security.md": ["polyprefix admin tenant add acme", "polyprefix admin key create acme"],
}


def typed_of(block: Block) -> list[Command]:
    """What a reader types of a block, but for what needs a program that is not on this machine, such as jq."""
    if block.language == "sh":
        return [command for command in those(commands_of(block), By.HERE) if not missing_programs(command)]
    if block.language == "python" and block.page in WITH_PYTHON and "openai" not in block.code:
        return [Command(block.page, block.line, f"python - <<'END'\n{block.code}END")]
    return []


def missing_programs(command: Command) -> set[str]:
    programs = {call[0] for call in command.calls} - NO_PROGRAMS - {"polyprefix"}
    return {program for program in programs if shutil.which(program) is None}


def asks_a_server(commands: list[Command]) -> bool:
    words = ("curl", "polyprefix tasks", "polyprefix generate", "polyprefix upload", "--upload", "python -")
    return any(word in command.text for command in commands for word in words)


@pytest.mark.documents
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN_PAGES, ids=name_of)
def test_what_a_page_shows_can_be_done(page: Path, files: Path, tmp_path: Path, report: dict[str, float]) -> None:
    commands = [command for command in RUN if command.page == name_of(page) and not missing_programs(command)]
    failed = {str(command): "was not reached" for command in commands}
    try:
        follow(page, shutil.copytree(files, tmp_path / "reader"), failed)
    finally:
        report["doc_commands"] = report.get("doc_commands", 0) + len(commands)
        report["doc_commands_failed"] = report.get("doc_commands_failed", 0) + len(failed)
    assert failed == {}


def follow(page: Path, folder: Path, failed: dict[str, str]) -> None:
    """Type the whole page. What goes well is taken out of `failed`; what does not has there what it printed."""
    with Terminal(folder, find_free_port()) as terminal:
        for text in BEFORE.get(name_of(page), []):
            assert terminal.run(text) is None
        for block in blocks_of(page):
            commands = typed_of(block)
            if asks_a_server(commands):
                terminal.have_tasks()
            for command in commands:
                failed[str(command)] = terminal.run(command.text) or ""
                if not failed[str(command)]:
                    del failed[str(command)]


def test_every_command_has_its_target_or_its_reason(report: dict[str, float]) -> None:
    unrun = those(COMMANDS, By.NOBODY)
    report["doc_commands_of_nobody"] = len(unrun)
    assert {rule_of(command) for command in COMMANDS} == set(RULES), "a rule that fits nothing is to be taken out"
    assert len(RUN) > 50
    assert len(unrun) <= MAX_UNRUN


def test_a_command_that_fails_is_told_with_what_it_printed(tmp_path: Path) -> None:
    port = find_free_port()  # where nobody answers
    with Terminal(tmp_path, port) as terminal:
        assert terminal.run("export COLOUR='light green'") is None
        assert terminal.run('test "$COLOUR" = "light green"') is None
        assert terminal.run("echo lost; exit_of() { return 3; }; exit_of") == "status 3: lost"
        assert terminal.run("false | cat") == "status 1: "
        assert str(terminal.run("curl localhost:8000/health")).startswith("status 7: ")
        assert "error: " in str(terminal.run("polyprefix tasks"))
