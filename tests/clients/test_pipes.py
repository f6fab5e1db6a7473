"""`polyprefix generate` as a process in the middle of a pipe, which may end before it, or be ended by somebody."""

import signal
import subprocess
import sys

from tests.clients.test_client_verbs import GENERATION

COMMAND = [sys.executable, "-m", "polyprefix", "generate", "e2e", "--concurrency", "1"]


def test_a_pipe_that_has_read_enough_ends_it_without_a_word(fake):
    for _ in range(50):
        fake.will_answer(200, GENERATION)
    pipe = f"yes x | {' '.join(COMMAND)} --url {fake.url} | head -n 2"
    done = subprocess.run(["sh", "-c", pipe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.count("\n") == 2
    assert done.stderr == ""


def test_ctrl_c_ends_it_without_a_traceback(fake):
    for _ in range(8):
        fake.will_answer(200, GENERATION)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, "--url", fake.url], **pipes) as process:
        process.stdin.write(b"x\n" * 8)
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)  # it waits for the ninth line
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
