"""The demo, run as a process with a real server as its child."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from clients.client import Client
from clients.errors import ConnectionFailed
from tests.child_processes import child_pids
from tests.polyprefix.conftest import save_model


def start(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "polyprefix", "demo", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_answer_of_the_burst_is_the_one_it_gets_alone_and_the_server_stays_until_ctrl_c(
    tiny_model: Path, free_port: int, tmp_path: Path
) -> None:
    process = start("--model", str(tiny_model), "--port", str(free_port), "--store", str(tmp_path))
    assert process.stdout is not None
    printed = ""
    while "Try:" not in printed:
        line = process.stdout.readline()
        assert line, (tmp_path / "server.log").read_text()
        printed += line
    assert "28 of 28 answers are the same as when asked alone" in printed
    counts = re.search(r"(\d+) of \d+ steps held rows of several.* steps that mixed tasks: (\d+)\.", printed, re.DOTALL)
    assert counts is not None
    assert int(counts[1]) == int(counts[2]) > 0  # the answers' steps tell it, and the engine's own counter
    with Client(f"http://127.0.0.1:{free_port}") as client:
        assert client.generate("opposites", "wet").task_id == "opposites"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        with pytest.raises(ConnectionFailed):
            client.health()
    process.communicate()


def test_a_server_that_dies_ends_the_demo_with_its_last_words(tiny_model: Path, free_port: int, tmp_path: Path) -> None:
    process = start("--model", str(tiny_model), "--port", str(free_port), "--store", str(tmp_path))
    assert process.stdout is not None
    while "Try:" not in process.stdout.readline():
        assert process.poll() is None
    (server,) = child_pids(process.pid)
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the server ended with status -9; its last words:" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_told_to_end_ends_its_server(tiny_model: Path, free_port: int, number: signal.Signals) -> None:
    """As when its terminal is closed."""
    process = start("--model", str(tiny_model), "--port", str(free_port))
    assert process.stdout is not None
    while "Try:" not in process.stdout.readline():
        assert process.poll() is None
    (server,) = child_pids(process.pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert not Path(f"/proc/{server}").exists()


def test_once_ends_by_itself(tiny_model: Path, free_port: int) -> None:
    process = start("--model", str(tiny_model), "--port", str(free_port), "--once")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "28 of 28" in printed


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_nothing_can_be_asked_at_is_refused(port: str) -> None:
    process = start("--model", "unused", "--port", port)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--port" in errors


def test_a_store_that_cannot_be_a_folder_is_one_line(free_port: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    process = start("--model", "unused", "--port", str(free_port), "--store", str(file))
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (1, 1)
    assert errors.startswith("error: ")
    assert str(file) in errors


def test_a_refusal_of_the_servers_is_one_line(free_port: int, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(tmp_path, byte_tokenizer, num_positions=32)  # the demo's texts do not fit
    process = start("--model", str(tmp_path), "--port", str(free_port), "--once")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (1, 1)
    assert "(422 validation" in errors


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--model", "unused", "--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--port" in errors
