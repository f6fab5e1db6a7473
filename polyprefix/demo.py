"""`polyprefix demo`: a server on the embedded model, many tasks asked at once, and the proof that they shared steps.

Knows the order of things. The server runs as anybody's would and is asked over HTTP alone.
"""

import asyncio
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from clients.client import Client
from clients.errors import PolyprefixError
from polyprefix.child_server import ServerFailed, child_server, is_free, wait_until_ended, wait_until_ready
from polyprefix.demo_burst import ask_at_once, ask_one_by_one, mixed
from polyprefix.demo_report import comparison, report
from polyprefix.demo_tasks import PLAIN_TEXT_TASKS, DemoTask, embedded_tasks, publish

NUM_EXAMPLES = 4
MIXED_STEPS = re.compile(r"^polyprefix_mixed_steps_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def demo(
    model: Annotated[
        str | None, typer.Option(help="Another GPT-2: a folder or a hub id. Default: the embedded one.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the server answers.")] = 8000,
    store: Annotated[Path | None, typer.Option(help="Keep the tasks in this folder. Default: a temporary one.")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End after the comparison, non-zero if an answer differed.")
    ] = False,
) -> None:
    """Start a server, ask it for many tasks at once, show which rows shared a step, and check each answer."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the child is ended too
        signal.signal(number, signal.default_int_handler)
    console = Console()
    if not is_free(port):
        fail(f"port {port} is taken; choose another one with --port")
    try:
        tasks = PLAIN_TEXT_TASKS if model else embedded_tasks()
        with folder(store) as directory, Client(f"http://127.0.0.1:{port}") as client:
            log = directory / "server.log"
            with child_server(serve_options(model, port, directory), log) as process:
                with console.status("starting the server and uploading the tasks"):
                    wait_until_ready(client, process, log)
                    publish(client, tasks)
                same = show(console, client, f"http://127.0.0.1:{port}", tasks)
                if not once:
                    serve_on(console, process, log, port, tasks[0])
    except (ServerFailed, PolyprefixError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if same else 1)


def serve_options(model: str | None, port: int, directory: Path) -> list[str]:
    """float32, in which a row's answer does not depend on the rows beside it."""
    options = ["--store", str(directory / "store"), "--dtype", "float32", "--port", str(port)]
    return options + (["--model", model] if model else [])


def show(console: Console, client: Client, url: str, tasks: list[DemoTask]) -> bool:
    """The burst, the table, the comparison. True when every answer is the one that the request gets alone."""
    asks = mixed(tasks, NUM_EXAMPLES)
    before = num_mixed_steps(client)
    with console.status(f"asking {len(asks)} questions of {len(tasks)} tasks at once"):
        together = asyncio.run(ask_at_once(url, asks))
    console.print(report(together, num_mixed_steps(client) - before))
    one_by_one = ask_one_by_one(client, asks)
    alone = list(track(one_by_one, "asking each again, alone", total=len(asks), console=console))
    console.print(comparison(together, alone), markup=False)
    return [row.answer for row in together] == [row.answer for row in alone]


def num_mixed_steps(client: Client) -> int:
    """The server's counter of steps that held rows of more than one task."""
    found = MIXED_STEPS.search(client.metrics())
    return int(float(found[1])) if found else 0


def serve_on(console: Console, process: subprocess.Popen[bytes], log: Path, port: int, task: DemoTask) -> None:
    console.print(f"\nServing at http://127.0.0.1:{port} until Ctrl-C. Try:")
    command = ["polyprefix", "generate", "--url", f"http://127.0.0.1:{port}", task.task_id, task.examples[0]]
    console.print(f"  {shlex.join(command)}", markup=False, highlight=False, soft_wrap=True)  # to be copied whole
    try:
        wait_until_ended(process, log)
    except KeyboardInterrupt:
        console.print("ending the server")


@contextmanager
def folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="polyprefix-") as temporary:
            yield Path(temporary)


def fail(message: str) -> None:
    typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(1)
