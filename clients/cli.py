"""The commands that talk to a server: `polyprefix upload`, `tasks`, `generate`, `delete`.

Knows terminals. Each command is a plain function with typer's annotations; what it does is the `Client`'s, and what it
prints with `--json` is the server's own JSON.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any
from unicodedata import category

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from clients import calls
from clients.calls import Call
from clients.client import DEFAULT_URL, Client, answer_of
from clients.errors import ApiError, DeadlineExceeded, GenerationFailed, InvalidRequest, TooLarge, ValidationFailed
from clients.results import Generation, Json, Task, Version
from clients.terminal import all_tasks, complete_task, connected, echo_json, fail, unread

WIDE = 1000  # columns
MAX_HEADER_BYTES = 65536  # of a file that a server takes
Url = Annotated[str, typer.Option(envvar="POLYPREFIX_URL", help="Where the server answers.")]
ApiKey = Annotated[str | None, typer.Option(envvar="POLYPREFIX_API_KEY", help="The tenant's key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.", autocompletion=complete_task)]
PrefixPath = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="A safetensors file: ours, or the adapter_model.safetensors that PEFT saved.",
    ),
]

# What is wrong with one input and not with the next.
OF_ONE_INPUT = (InvalidRequest, ValidationFailed, GenerationFailed, TooLarge, DeadlineExceeded)


def upload(
    task: TaskId,
    file: PrefixPath,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    serve: Annotated[bool, typer.Option(help="Give it the task's requests from now on.")] = True,
) -> None:
    """Make a safetensors file the task's next version. A task without a template gets that of the file."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with connected(url, api_key) as client, Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        row = bar.add_task(f"uploading {task}")
        call = calls.upload(
            task, file, serve=serve, progress=lambda sent, total: bar.update(row, completed=sent, total=total)
        )
        answer = client.carry_out(unread(call))
        template = template_of(file) if serve else None
        if template is not None and client.task(task).config.prompt_template is None:
            client.set_config(task, prompt_template=template)
        else:
            template = None
    if as_json:
        echo_json(answer)
    else:
        version = Version.from_json(answer)
        typer.echo(f"{task}: version {version.version}, {version.kind}, {version.num_virtual_tokens} virtual tokens")
        if template is not None:
            typer.echo(f"{task}: prompt template {template!r}, which the file was trained with")


def template_of(file: Path) -> str | None:
    """The prompt template that a file of `polyprefix train` says it was trained with."""
    with file.open("rb") as opened:
        num_bytes = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(min(num_bytes, MAX_HEADER_BYTES)))
        except (ValueError, RecursionError):  # the server says what is wrong with it
            return None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    template = metadata.get("prompt_template") if isinstance(metadata, dict) else None
    return template if isinstance(template, str) else None


def tasks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tasks that the key may see."""
    with connected(url, api_key) as client:
        found = list(all_tasks(client))
    if as_json:
        echo_json(found)
    else:
        console = Console()
        if not console.is_terminal:
            console.width = WIDE  # for whoever greps: nothing is cut
        console.print(task_table([Task.from_json(task) for task in found]))


def generate(
    task: TaskId,
    inputs: Annotated[
        str | None,
        typer.Argument(metavar="INPUTS", help="What to continue; without it or for - each line of standard input."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="At most this many new tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature; 0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely tokens that hold this share.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; may be given again.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search with this many beams.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="At most this many lines are asked at once.")] = 64,
) -> None:
    """Continue INPUTS as the task does, printing the text as it is made; or each line, as lines of JSON."""
    parameters = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
        "num_beams": num_beams,
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    details = {"details": True} if as_json else {}
    if inputs is None and standard_input_is_a_terminal():
        raise typer.BadParameter("give a text, or pipe lines into it", param_hint="INPUTS")
    with connected(url, api_key, task) as client:
        if inputs is None or inputs == "-":
            asked = (calls.generate(task, line, **given, **details) for line in standard_input())
            echo_answers(client, asked, concurrency)
        elif as_json:
            echo_json(client.carry_out(unread(calls.generate(task, inputs, **given, **details))))
        elif (num_beams or 1) > 1:  # beams are compared at the end, so there is nothing to stream
            typer.echo(client.generate(task, inputs, **given).generated_text)
        else:
            echo_stream(client, task, inputs, given)


def delete(task: TaskId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Remove the task with all its versions."""
    with connected(url, api_key, task) as client:
        client.delete(task)
    if as_json:
        echo_json({"task_id": task, "deleted": True})
    else:
        typer.echo(f"{task}: deleted")


def task_table(found: list[Task]) -> Table:
    task_id = Column("task", overflow="fold")
    table = Table(task_id, "version", "kind", "virtual tokens", "bytes", "since", "description")
    for task in found:
        served = task.served
        since = f"{served.created_at:%Y-%m-%d %H:%M}"
        numbers = str(served.version), served.kind, str(served.num_virtual_tokens), str(served.num_bytes)
        table.add_row(task.task_id, *numbers, since, as_written(task.config.description))
    return table


def as_written(text: str) -> Text:
    """Somebody's text in a table: no markup, and nothing that moves the terminal's cursor."""
    moving = {each for each in text if category(each) == "Cc"} - {"\n", "\t"}
    return Text("".join("\N{REPLACEMENT CHARACTER}" if each in moving else each for each in text))


def echo_stream(client: Client, task: str, prompt: str, parameters: dict[str, Any]) -> None:
    """The text as it comes. Its line is ended also where an error ends the text; a refusal prints none of it."""
    events = client.stream(task, prompt, **parameters)
    typer.echo(next(events).token.text, nl=False)  # refusals raise here
    try:
        for event in events:
            typer.echo(event.token.text, nl=False)
    finally:
        typer.echo()


def standard_input_is_a_terminal() -> bool:
    return sys.stdin.isatty()


def standard_input() -> Iterator[str]:
    """Its lines, as UTF-8 whatever the locale says. A line that is not becomes a text that no request can hold."""
    for line in sys.stdin.buffer:
        yield line.rstrip(b"\r\n").decode(errors="surrogateescape")


def echo_answers(client: Client, asked: Iterable[Call[Generation]], concurrency: int) -> None:
    """A line of JSON for each call, in order: its answer, or what was wrong with this one. Other errors end it all."""
    num_failed = 0
    for outcome in client.outcomes(map(unread, asked), concurrency):
        if isinstance(outcome, OF_ONE_INPUT):
            num_failed += 1
            echo_json(error_json(outcome))
        else:
            echo_json(answer_of(outcome))
    if num_failed:
        fail(f"{num_failed} of the lines could not be answered")


def error_json(error: ApiError | InvalidRequest) -> Json:
    """In the contract's form."""
    if isinstance(error, ApiError):
        return {"error": error.message, "error_type": error.error_type}
    return {"error": str(error), "error_type": "bad_request"}
