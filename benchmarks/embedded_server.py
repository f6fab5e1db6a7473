"""A real server on the embedded model with its tasks, in a child process, for as long as a `with` block lasts.

Knows where the embedded tasks are and how they are put on a server. Knows nothing of what is then asked.
"""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo_tasks import embedded_tasks, publish


@contextmanager
def embedded_server() -> Iterator[Client]:
    """A client of it. The server computes in float32, in which a row's answer does not depend on the rows beside it."""
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as folder:
        port, log = free_port(), Path(folder) / "server.log"
        options = ["--store", f"{folder}/store", "--dtype", "float32", "--port", str(port)]
        with child_server(options, log) as process, Client(f"http://127.0.0.1:{port}") as client:
            wait_until_ready(client, process, log)
            publish(client, embedded_tasks())
            yield client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
