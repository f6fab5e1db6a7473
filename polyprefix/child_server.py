"""A server of our own in a child process, for as long as a `with` block lasts.

Knows the command `polyprefix serve` and the way to tell that it is ready. Knows nothing of tasks.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clients.client import Client
from clients.errors import ConnectionFailed, Unavailable

POLL_SECONDS = 0.1
DRAIN_SECONDS = 45.0  # the server itself promises to be gone 40 s after SIGTERM
READY_SECONDS = 180.0  # room for a large backbone on a slow disk
NUM_LOG_LINES = 20


class ServerFailed(RuntimeError):
    """The child ended, or took too long to be ready; the message holds the end of its log."""


@contextmanager
def child_server(options: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`polyprefix serve` with these options, its output in `log`.

    In a process group of its own, so that a Ctrl-C in the terminal reaches it through us, once."""
    # -P: a folder `server` where the command was typed is not ours
    command = [sys.executable, "-P", "-m", "polyprefix", "serve", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, process_group=0)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(DRAIN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(
    client: Client, process: subprocess.Popen[bytes], log: Path, max_seconds: float = READY_SECONDS
) -> None:
    """Returns when the server answers that it is ready. Raises `ServerFailed` when the process ends instead, or when
    `max_seconds` have passed."""
    deadline = time.monotonic() + max_seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            client.ready()
            return
        except (ConnectionFailed, Unavailable):
            time.sleep(POLL_SECONDS)
    status = process.poll()
    raise failed(f"was not ready after {max_seconds:g} s" if status is None else f"ended with status {status}", log)


def wait_until_ended(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raises `ServerFailed` unless it ended as it was asked to."""
    if status := process.wait():
        raise failed(f"ended with status {status}", log)


def failed(fate: str, log: Path) -> ServerFailed:
    last_lines = log.read_text(errors="replace").splitlines()[-NUM_LOG_LINES:]
    return ServerFailed("\n".join([f"the server {fate}; its last words:", *last_lines]))


def is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
