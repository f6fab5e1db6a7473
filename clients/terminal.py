"""What the commands share: a client whose errors become one line with advice, task ids for a shell, JSON as output.

Knows terminals. Knows nothing of what a single command does.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx
import typer

from clients import calls
from clients.calls import Call
from clients.client import DEFAULT_URL, Client
from clients.errors import ConnectionFailed, NotFound, PolyprefixError, TimedOut
from clients.results import Json
from clients.retries import Retries

MAX_PAGE = 1000  # tasks, of which a server lists no more at a time
COMPLETION_SECONDS = 1.0  # a shell that waits longer for a Tab seems to hang


@contextmanager
def connected(url: str, api_key: str | None, task: str | None = None) -> Iterator[Client]:
    """A client whose errors become one line on standard error and exit status 1. `task` is what the user typed."""
    try:
        with Client(url, api_key=api_key) as client:
            try:
                yield client
            except NotFound as error:
                fail(f"{error}{did_you_mean(client, task)}" if task else str(error))
    except TimedOut as error:
        fail(f"no answer from {error.url} in time; try again")
    except ConnectionFailed as error:
        fail(f"{error} --url or POLYPREFIX_URL name another one.")
    except PolyprefixError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(1)


def did_you_mean(client: Client, task: str) -> str:
    """The advice after an unknown task: the one most like it among those that the key may see, and no other."""
    try:
        task_ids = {found["task_id"].lower(): found["task_id"] for found in all_tasks(client)}
    except PolyprefixError:
        return ""
    if task in task_ids.values():  # something else of it was not found
        return ""
    close = difflib.get_close_matches(task.lower(), task_ids, n=1)
    return f"; did you mean {task_ids[close[0]]!r}?" if close else "; `polyprefix tasks` lists those there are"


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """For a shell: the tasks that the key may see; none where the server does not answer at once."""
    url, api_key = context.params.get("url") or DEFAULT_URL, context.params.get("api_key")
    try:
        with Client(url, api_key=api_key, timeout=COMPLETION_SECONDS, retries=Retries(max_retries=0)) as client:
            task_ids: list[str] = [found["task_id"] for found in all_tasks(client)]
    except PolyprefixError:
        return []
    return [task_id for task_id in task_ids if task_id.startswith(incomplete)]


def all_tasks(client: Client) -> Iterator[Json]:
    page = client.carry_out(unread(calls.tasks(MAX_PAGE)))
    yield from page["tasks"]
    while page.get("next") is not None:
        page = client.carry_out(unread(calls.tasks(MAX_PAGE, page["next"])))
        yield from page["tasks"]


def unread(call: Call[Any]) -> Call[Json]:
    """The same call, its answer checked as ever but given as the JSON that the server sent."""

    def read(response: httpx.Response) -> Json:
        call.read(response)
        body: Json = response.json()
        return body

    return dataclasses.replace(call, read=read)


def echo_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))
