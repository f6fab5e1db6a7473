"""The commands that talk to a server: `polyprefix upload`, `tasks`, `generate`, `delete`.

Knows terminals. Each command is a plain function with typer's annotations; what it does is the `Client`'s, and what it
prints with `--json` is the server's own JSON.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from clients import calls
from clients.calls import Call
from clients.client import DEFAULT_URL, Client
from clients.errors import ConnectionFailed, PolyprefixError
from clients.results import Json, Task, Version

Url = Annotated[str, typer.Option(envvar="POLYPREFIX_URL", help="Where the server answers.")]
ApiKey = Annotated[str | None, typer.Option(envvar="POLYPREFIX_API_KEY", help="The tenant's key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")]
PrefixPath = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="A safetensors file: ours, or the adapter_model.safetensors that PEFT saved.",
    ),
]


def upload(
    task: TaskId, file: PrefixPath, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Make a safetensors file the task's next version."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with connected(url, api_key) as client, Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        row = bar.add_task(f"uploading {task}")
        call = calls.upload(task, file, progress=lambda sent, total: bar.update(row, completed=sent, total=total))
        answer = client.carry_out(unread(call))
    if as_json:
        echo_json(answer)
    else:
        version = Version.from_json(answer)
        typer.echo(f"{task}: version {version.version}, {version.kind}, {version.num_virtual_tokens} virtual tokens")


def tasks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tasks that the key may see."""
    with connected(url, api_key) as client:
        found = list(all_tasks(client))
    if as_json:
        echo_json(found)
    else:
        Console().print(task_table([Task.from_json(task) for task in found]))


def generate(
    task: TaskId,
    inputs: Annotated[str, typer.Argument(metavar="INPUTS", help="What to continue; - reads it from standard input.")],
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
) -> None:
    """Continue INPUTS as the task does, printing the text as it is made."""
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
    prompt = read_standard_input() if inputs == "-" else inputs
    with connected(url, api_key) as client:
        if as_json:
            echo_json(client.carry_out(unread(calls.generate(task, prompt, details=True, **given))))
        elif (num_beams or 1) > 1:  # beams are compared at the end, so there is nothing to stream
            typer.echo(client.generate(task, prompt, **given).generated_text)
        else:
            echo_stream(client, task, prompt, given)


def delete(task: TaskId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Remove the task with all its versions."""
    with connected(url, api_key) as client:
        client.delete(task)
    if as_json:
        echo_json({"task_id": task, "deleted": True})
    else:
        typer.echo(f"{task}: deleted")


@contextmanager
def connected(url: str, api_key: str | None) -> Iterator[Client]:
    """A client whose errors become one line on standard error and exit status 1."""
    try:
        with Client(url, api_key=api_key) as client:
            yield client
    except ConnectionFailed as error:
        fail(f"{error} --url or POLYPREFIX_URL name another one.")
    except PolyprefixError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(1)


def read_standard_input() -> str:
    """UTF-8 whatever the locale says, as the contract has it."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        fail(f"standard input is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}")


def unread(call: Call[Any]) -> Call[Json]:
    """The same call, its answer checked as ever but given as the JSON that the server sent."""

    def read(response: httpx.Response) -> Json:
        call.read(response)
        body: Json = response.json()
        return body

    return dataclasses.replace(call, read=read)


def all_tasks(client: Client) -> Iterator[Json]:
    page = client.carry_out(unread(calls.tasks()))
    yield from page["tasks"]
    while page.get("next") is not None:
        page = client.carry_out(unread(calls.tasks(after=page["next"])))
        yield from page["tasks"]


def task_table(found: list[Task]) -> Table:
    table = Table("task", "version", "kind", "virtual tokens", "bytes", "since", "description")
    for task in found:
        served = task.served
        since = f"{served.created_at:%Y-%m-%d %H:%M}"
        numbers = str(served.version), served.kind, str(served.num_virtual_tokens), str(served.num_bytes)
        table.add_row(task.task_id, *numbers, since, task.config.description)
    return table


def echo_stream(client: Client, task: str, prompt: str, parameters: dict[str, Any]) -> None:
    """The text as it comes. Its line is ended also where an error ends the text; a refusal prints none of it."""
    events = client.stream(task, prompt, **parameters)
    typer.echo(next(events).token.text, nl=False)  # refusals raise here
    try:
        for event in events:
            typer.echo(event.token.text, nl=False)
    finally:
        typer.echo()


def echo_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
