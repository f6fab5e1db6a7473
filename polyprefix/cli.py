"""The command `polyprefix`: loads the one sub-command that was called, and nothing else.

Knows the names of the commands (the entry-point group `polyprefix.commands`) and which extra brings each. The commands
themselves live with what they start, so that the client's need httpx and no torch.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

from polyprefix import __version__

GROUP = "polyprefix.commands"

# name: (help line, extra), in the order of `--help`; a command of another distribution needs no line here
COMMANDS = {
    "demo": ("Start a server on the embedded model and show tasks sharing its steps.", "server"),
    "serve": ("Serve one frozen GPT-2 and many tasks over HTTP.", "server"),
    "admin": ("Manage tenants and their API keys.", "server"),
    "store": ("Check, back up, restore and clean the store.", "server"),
    "upload": ("Make a safetensors file, or a text, the task's next version.", ""),
    "tasks": ("List the tasks that the key may see.", ""),
    "task": ("Show a task with its versions; roll back, split its traffic, set its defaults.", ""),
    "generate": ("Continue a text as a task does, printing it as it is made.", ""),
    "delete": ("Remove a task with all its versions.", ""),
    "train": ("Tune a prefix for one task on a frozen GPT-2.", "train"),
    "train-many": ("Tune the prefixes of many tasks over one loaded backbone.", "train"),
    "evaluate": ("Score a served task on a test set.", "train"),
    "convert": ("Turn prefix files of other projects into ours, and back.", "train"),
    "experiment": ("Repeat the paper's comparisons on a backbone.", "train"),
}


def main() -> None:
    try:
        app = build(completed_line() or sys.argv[1:])
    except KeyboardInterrupt:  # a command's imports take seconds
        sys.exit(130)
    app(prog_name="polyprefix")


def completed_line() -> list[str]:
    """What stands on the line that a shell wants completed, as typer's scripts for the shells tell it."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return line.split()[1:]


def build(arguments: list[str]) -> typer.Typer:
    """The application: the command that is called is loaded, every other is a name with a help line."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(polyprefix)
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for entry_point in sorted(entry_points(group=GROUP), key=place):
        command = load(entry_point) if entry_point.name == called else not_called
        help_line = COMMANDS.get(entry_point.name, ("", ""))[0]
        if isinstance(command, typer.Typer):  # a group of commands
            app.add_typer(command, name=entry_point.name, short_help=help_line)
        else:
            app.command(entry_point.name, short_help=help_line)(command)
    return app


def place(entry_point: EntryPoint) -> tuple[int, str]:
    names = list(COMMANDS)
    known = entry_point.name in COMMANDS
    return names.index(entry_point.name) if known else len(names), entry_point.name


def load(entry_point: EntryPoint) -> typer.Typer | Callable[..., Any]:
    """Import the command, or say which extra it needs."""
    try:
        command: typer.Typer | Callable[..., Any] = entry_point.load()
    except ModuleNotFoundError as error:
        extra = COMMANDS.get(entry_point.name, ("", ""))[1]
        if not extra:
            raise
        advice = f"`polyprefix {entry_point.name}` needs {error.name}: pip install 'polyprefix[{extra}]'"
        typer.secho(advice, err=True, fg="red")
        sys.exit(1)
    return command


def not_called() -> None:
    pass  # stands for a command in the list of names, where a docstring would become its help line


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polyprefix {__version__}")
        raise typer.Exit


def polyprefix(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """One frozen GPT-2 serves many prefix-tuned tasks in one batch, over HTTP."""
