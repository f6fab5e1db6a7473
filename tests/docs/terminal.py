"""A reader who types a page's commands, in order, into one shell, in a folder of their own.

Knows bash, and which commands stay in the foreground: a server is started and waited for. What a reader has to put in
by themselves, a key or another port, is put in here.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from clients.client import Client
from polyprefix.child_server import end, wait_until_ready
from polyprefix.demo_tasks import POCKET, embedded_tasks, publish

END = "--- that command is done:"
# What curl prints where the server refuses would pass for an answer.
PRELUDE = 'set -o pipefail; curl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@"; }\n'
SERVER = re.compile(r"^polyprefix (serve|demo)\b")
ON_THE_STORE = re.compile(r"^polyprefix (admin|store)\b(?!.*--url)")
KEY = re.compile(r"^pp_([a-z0-9]{8})_[0-9a-f]{64}$", re.MULTILINE)
DEMO_SECONDS = 120.0


class Terminal:
    """Used in a `with` block. `port` is where servers answer, in the place of 8000."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._url = f"http://localhost:{port}"
        self._log = folder / "server.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._key: str | None = None  # the first that was made; a reader keeps it in POLYPREFIX_API_KEY
        own = {name: value for name, value in os.environ.items() if not name.startswith("POLYPREFIX_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
        self._environment = {**own, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def __enter__(self) -> "Terminal":
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            env=self._environment,
        )
        self._type(PRELUDE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shell.communicate("exit\n")
        self._end_server()

    def run(self, text: str) -> str | None:
        """Type one command. None where it went well, else what it printed."""
        text = self._put_in(text)
        if SERVER.match(text):
            return self._serve(text)
        if ON_THE_STORE.match(text):
            self._end_server()  # one process owns a store
        self._type(f"{{ {text}\n}} </dev/null\nprintf '\\n{END}%s\\n' $?\n")
        printed, status = self._read()
        if self._key is None and (made := KEY.search(printed)):
            self._key = made[0]
            self._type(f"export POLYPREFIX_API_KEY={self._key}\n")
        return None if status == 0 else f"status {status}: {printed.strip()}"

    def have_tasks(self) -> None:
        """The embedded tasks, as they were, on a server that runs; a server where there is none."""
        if self._server is None:
            self._serve("polyprefix serve --store ./store")
        with Client(self._url, api_key=self._key) as client:
            publish(client, embedded_tasks())

    def _put_in(self, text: str) -> str:
        text = re.sub(r"(localhost|127\.0\.0\.1):8000", rf"\1:{self._port}", text)
        text = re.sub(r"--model gpt2(-medium)?\b", f"--model {POCKET}", text)
        text = re.sub(r"\bpolyprefix (tasks|upload|generate|delete)\b", rf"POLYPREFIX_URL={self._url} \g<0>", text)
        if self._key is not None:
            text = text.replace("pp_…", self._key).replace("k1x2y3z4", self._key[3:11])
        return text

    def _serve(self, text: str) -> str | None:
        self._end_server()
        with self._log.open("wb") as output:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {text} --port {self._port}"],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
                process_group=0,
            )
        with Client(self._url) as client:
            wait_until_ready(client, self._server, self._log)
        return self._shown_by_the_demo() if "demo" in text else None

    def _shown_by_the_demo(self) -> str | None:
        """It serves on once it has shown what it has to show."""
        deadline = time.monotonic() + DEMO_SECONDS
        while time.monotonic() < deadline:
            printed = self._log.read_text(errors="replace")
            if "Try:" in printed:
                return None
            time.sleep(0.2)
        return printed

    def _end_server(self) -> None:
        if self._server is not None:
            end(self._server)
            self._server = None

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text)
        self._shell.stdin.flush()

    def _read(self) -> tuple[str, int]:
        assert self._shell.stdout is not None
        printed = ""
        while not (line := self._shell.stdout.readline()).startswith(END):
            assert line, f"the shell ended: {printed}"
            printed += line
        return printed, int(line.removeprefix(END))
