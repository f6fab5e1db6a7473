"""Every command that a document shows is one: the sub-command, each option, each target and module is there.

Nothing is run here.
"""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from polyprefix.cli import build
from tests.docs.commands import COMMANDS, Command, words_of
from tests.docs.pages import PAGES, ROOT, name_of, prose_of

TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
INLINE = re.compile(r"`((?:polyprefix|make|python -m) [^`]+)`")
OPTION = re.compile(r"\"(--[a-z][\w-]*)\"")
OF_EVERY_COMMAND = {"--help", "--install-completion", "--show-completion"}


def inline_commands() -> Iterator[Command]:
    """Those within the text, which often leave the arguments out."""
    for page in PAGES:
        text = prose_of(page)
        for found in INLINE.finditer(text):
            yield Command(name_of(page), text.count("\n", 0, found.start()) + 1, found[1].replace("\n", " "))


def wrong_in(call: list[str], is_whole: bool = True) -> str | None:
    """What is wrong with one program's words; of programs that are not ours, nothing."""
    match call:
        case ["docker", "compose", "exec", _, *inside] | ["kubectl", "exec", _, "--", *inside]:
            return wrong_in(inside, is_whole)
        case ["opentelemetry-instrument", *instrumented]:
            return wrong_in(instrumented, is_whole)
        case ["make", *words]:
            unknown = [word for word in words if "=" not in word and word not in TARGETS]
            return f"no target {unknown}" if unknown else None
        case ["python", "-m", module, *words] if module.startswith("benchmarks."):
            return wrong_in_benchmark(module, words)
        case ["polyprefix", *words]:
            return wrong_in_ours(words, is_whole)
    return None


def wrong_in_ours(words: list[str], is_whole: bool) -> str | None:
    """By the command line's own parser, which knows options and how many values they take."""
    if words and words[0] in OF_EVERY_COMMAND:
        return None
    command = typer.main.get_command(build(words))
    while (commands := getattr(command, "commands", None)) is not None:
        name = words.pop(0) if words else ""
        if name not in commands:
            return None if not name and not is_whole else f"no command {name!r}"
        command = commands[name]
    context = command.make_context("polyprefix", [], resilient_parsing=True)  # asks for nothing and runs nothing
    context.resilient_parsing = False  # or the parser would pass over what it does not know
    try:
        given, extra, _ = command.make_parser(context).parse_args(words)
    except Exception as error:
        return str(error)
    missing = [each.name for each in command.params if each.required and given.get(each.name) in (None, ())]
    if extra or (missing and is_whole):
        return f"too many: {extra}, missing: {missing}"
    return None


def wrong_in_benchmark(module: str, words: list[str]) -> str | None:
    """Options are looked for in the module's source, and in that of the parser that several share."""
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations is not None:  # a package is run by its `__main__`
        spec = importlib.util.find_spec(f"{module}.__main__")
    if spec is None or spec.origin is None:
        return f"no module {module}"
    sources = [Path(spec.origin).read_text(), (ROOT / "benchmarks/arguments.py").read_text()]
    shared = "make_parser(" in sources[0]
    known = {option for source in sources[: 1 + shared] for option in OPTION.findall(source)}
    unknown = [word for word in words if word.startswith("--") and word not in known]
    return f"no option {unknown}" if unknown else None


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_shown_command_can_be_typed(command: Command) -> None:
    assert [wrong for call in command.calls if (wrong := wrong_in(call))] == []


@pytest.mark.parametrize("command", [*inline_commands()], ids=str)
def test_a_command_in_the_text_is_one(command: Command) -> None:
    assert [wrong for call in command.calls if (wrong := wrong_in(call, is_whole=False))] == []


@pytest.mark.parametrize(
    "line",
    [
        "make coffee",
        "polyprefix sevre",
        "polyprefix serve --modle gpt2",
        "polyprefix generate",
        "polyprefix tasks e2e",
        "polyprefix admin tenant add",
        "docker compose exec polyprefix polyprefix store verfiy",
        "kubectl exec deploy/polyprefix -- polyprefix store backup",
        "python -m benchmarks.nothing",
        "python -m benchmarks.engine --pear 9",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    assert wrong_in(words_of(line))
