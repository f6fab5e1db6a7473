"""A child process that never becomes a server, and a port that somebody has."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clients.client import Client
from polyprefix.child_server import ServerFailed, is_free, wait_until_ready


def test_a_server_that_ends_before_it_is_ready_is_told_in_its_own_words(tmp_path: Path, free_port: int) -> None:
    log = tmp_path / "server.log"
    log.write_text("no such model: nowhere\n")
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        Client(f"http://127.0.0.1:{free_port}") as client,
        pytest.raises(ServerFailed, match=r"status 3.*\n.*no such model: nowhere"),
    ):
        wait_until_ready(client, process, log)


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path, free_port: int) -> None:
    log = tmp_path / "server.log"
    log.write_text("loading\n")
    with (
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process,
        Client(f"http://127.0.0.1:{free_port}") as client,
        pytest.raises(ServerFailed, match=r"not ready after 0\.2 s.*\n.*loading"),
    ):
        wait_until_ready(client, process, log, max_seconds=0.2)


def test_a_port_is_free_until_somebody_listens_on_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
