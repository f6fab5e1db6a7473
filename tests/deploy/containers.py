"""Containers of the image under test, run as whoever trusts nobody would run them, and a way to ask what is in them."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STRICT = ("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges", "--no-healthcheck")

# In the container, which may have no network: argv is the method, the path and how many seconds to wait for a 200.
ASK = """
import sys, time, urllib.error, urllib.request
method, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
body = sys.stdin.buffer.read() or None
given_up_at = time.monotonic() + seconds
while True:
    try:
        headers = {"content-type": "application/json" if body and body[:1] == b"{" else "application/octet-stream"}
        asked = urllib.request.Request("http://127.0.0.1:8000" + path, body, headers, method=method)
        sys.stdout.buffer.write(urllib.request.urlopen(asked).read())
        break
    except urllib.error.URLError:
        if time.monotonic() > given_up_at:
            raise
        time.sleep(0.05)
"""


def podman(*arguments: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["podman", *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, f"podman {' '.join(arguments)}\n{done.stderr.decode()}"
    return done.stdout


@dataclass(frozen=True)
class Container:
    id: str

    def run(self, *command: str, stdin: bytes = b"") -> bytes:
        """Run a command in it, as the user that the server runs as."""
        return podman("exec", "--interactive", self.id, *command, stdin=stdin)

    def fails(self, *command: str) -> bool:
        return subprocess.run(["podman", "exec", self.id, *command], capture_output=True, check=False).returncode != 0

    def ask(self, method: str, path: str, body: bytes = b"", wait: float = 0) -> bytes:
        return self.run("python", "-c", ASK, method, path, str(wait), stdin=body)

    def generate(self, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.ask("POST", "/generate", json.dumps(body).encode()))
        return answer

    def stop(self) -> int:
        """SIGTERM, and what the process ended with; it is killed after 45 seconds."""
        podman("stop", "--time=45", self.id)
        return int(podman("inspect", "--format={{.State.ExitCode}}", self.id))


@contextmanager
def container(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[Container]:
    made = Container(podman("run", "--detach", *STRICT, *options, image, *command).decode().strip())
    try:
        yield made
    finally:
        podman("rm", "--force", "--volumes", made.id)
