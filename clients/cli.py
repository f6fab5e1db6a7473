"""The commands that talk to a server: `polyprefix upload`, `tasks`, `task`, `generate`, `delete`.

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
    Path | None,
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
    file: PrefixPath = None,
    text: Annotated[str | None, typer.Option(help="In place of FILE: an instruction, say, to compile.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    serve: Annotated[bool, typer.Option(help="Give it the task's requests from now on.")] = True,
) -> None:
    """Make a safetensors file, or a text, the task's next version. A task without a template gets that of the file."""
    if (file is None) == (text is None):
        raise typer.BadParameter("give one of the two: a file, or --text", param_hint="FILE")
    with connected(url, api_key) as client:
        if file is not None:
            answer, template = upload_file(client, task, file, serve=serve, is_quiet=as_json)
        else:
            assert text is not None
            answer, template = client.carry_out(unread(calls.upload_text(task, text, serve=serve))), None
    if as_json:
        echo_json(answer)
    else:
        version = Version.from_json(answer)
        typer.echo(f"{task}: version {version.version}, {version.kind}, {version.num_virtual_tokens} virtual tokens")
        if template is not None:
            typer.echo(f"{task}: prompt template {template!r}, which the file was trained with")


def upload_file(client: Client, task: str, file: Path, *, serve: bool, is_quiet: bool) -> tuple[Json, str | None]:
    """The server's answer, and the template that the task was given: a version that brings one gets a task's requests
    not before the task has it."""
    template = template_of(file) if serve else None
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with Progress(*columns, console=Console(stderr=True), disable=is_quiet) as bar:
        row = bar.add_task(f"uploading {task}")
        call = calls.upload(
            task,
            file,
            serve=serve and template is None,
            progress=lambda sent, total: bar.update(row, completed=sent, total=total),
        )
        answer = client.carry_out(unread(call))
    if template is None:
        return answer, None
    if client.task(task).config.prompt_template is not None:
        client.use_version(task, answer["version"])
        return answer, None
    client.use_version(task, answer["version"], prompt_template=template)
    return answer, template


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
    return template if isinstance(template, str) and template.count("{inputs}") == 1 else None


def tasks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the tasks that the key may see."""
    with connected(url, api_key) as client:
        found = list(all_tasks(client))
    if as_json:
        echo_json(found)
    else:
        terminal().print(task_table([Task.from_json(task) for task in found]))


def task(
    task: TaskId,
    version: Annotated[int | None, typer.Option(help="Serve this version from now on: a roll-back, say.")] = None,
    traffic: Annotated[
        list[str] | None,
        typer.Option(metavar="VERSION=WEIGHT", help="Draw each request's version by weights; given once for each."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the task does.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help="One {inputs} in it; '' for none.")] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="JSON", help="""All of the task's defaults, '{"max_new_tokens": 40}' say.""")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Show a task with its versions. What the options name is changed first, all at once."""
    defaults = None if parameters is None else parameters_of(parameters)
    config = given(description=description, prompt_template=prompt_template, parameters=defaults)
    if prompt_template == "":
        config["prompt_template"] = None
    patch = given(version=version, traffic=weights_of(traffic) if traffic else None, config=config or None)
    with connected(url, api_key, task) as client:
        found = client.carry_out(unread(calls.change(task, patch) if patch else calls.task(task)))
    if as_json:
        echo_json(found)
    else:
        show(Task.from_json(found))


def given(**options: Any) -> dict[str, Any]:
    """Those that stood on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def weights_of(traffic: list[str]) -> dict[str, float]:
    """`["3=0.9", "4=0.1"]` as the contract has it."""
    try:
        weights = {number: float(weight) for number, weight in (each.split("=") for each in traffic)}
    except ValueError:
        raise typer.BadParameter("expected VERSION=WEIGHT, 3=0.9 say", param_hint="--traffic") from None
    if len(weights) < len(traffic):
        raise typer.BadParameter("the same version twice", param_hint="--traffic")
    return weights


def parameters_of(text: str) -> Json:
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise typer.BadParameter("""expected a JSON object, '{"max_new_tokens": 40}' say""", param_hint="--parameters")
    return parameters


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
    parameters = given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or None,
        num_beams=num_beams,
    )
    details = {"details": True} if as_json else {}
    if inputs is None and standard_input_is_a_terminal():
        raise typer.BadParameter("give a text, or pipe lines into it", param_hint="INPUTS")
    with connected(url, api_key, task) as client:
        if inputs is None or inputs == "-":
            asked = (calls.generate(task, line, **parameters, **details) for line in standard_input())
            echo_answers(client, asked, concurrency)
        elif as_json:
            echo_json(client.carry_out(unread(calls.generate(task, inputs, **parameters, **details))))
        elif (num_beams or 1) > 1:  # beams are compared at the end, so there is nothing to stream
            typer.echo(client.generate(task, inputs, **parameters).generated_text)
        else:
            echo_stream(client, task, inputs, parameters)


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
        numbers = str(served.version), served.kind, str(served.num_virtual_tokens), str(served.num_bytes)
        table.add_row(task.task_id, *numbers, since(served), as_written(task.config.description))
    return table


def show(task: Task) -> None:
    """Its versions with the share of requests that each gets, why some can have none, and its defaults."""
    console = terminal()
    weights = task.traffic or {task.version: 1.0}
    table = Table("version", "requests", "kind", "tokens", "bytes", "since", "sha256")
    for version in task.versions:
        share = f"{100 * weights.get(version.version, 0) / sum(weights.values()):.3g} %"
        numbers = str(version.num_virtual_tokens), str(version.num_bytes)
        table.add_row(str(version.version), share, version.kind, *numbers, since(version), version.sha256[:8])
    console.print(table)
    config = task.config
    for name, value in (
        *((f"version {version.version}", problem_of(version)) for version in task.versions),
        ("public", task.public and ("every tenant may use it" if task.own else "another tenant's; use it, no more")),
        ("description", config.description),
        ("prompt template", config.prompt_template and repr(config.prompt_template)),
        ("chat template", config.chat_template and json.dumps(config.chat_template, ensure_ascii=False)),
        ("parameters", config.parameters and json.dumps(config.parameters, ensure_ascii=False)),
    ):
        if value:
            console.print(as_written(f"{name}: {value}"))


def problem_of(version: Version) -> str | None:
    return "made for another backbone" if version.stale else version.quarantined


def terminal() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = WIDE  # for whoever greps: nothing is cut
    return console


def since(version: Version) -> str:
    return f"{version.created_at:%Y-%m-%d %H:%M}"


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
