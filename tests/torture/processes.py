"""The server as it is run, on the embedded model: `polyprefix serve` in a process of its own, with tenants and keys.

Knows the command, the registry and /proc. Knows nothing of what is asked.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx

from prefix_store.tenants import Scope, Tenant
from server.administration import open_store
from tests.child_processes import child_pids

PREFIXES = Path(str(files("polyprefix") / "pocket" / "prefixes"))
SERVE = (sys.executable, "-m", "polyprefix", "serve")
EXIT_SECONDS = 40  # what the server promises after SIGTERM

Keys = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Resources:
    """What the server and its engine hold, as the kernel counts it; memory is what is resident, in bytes."""

    memory: int
    num_threads: int
    num_descriptors: int


@dataclass(frozen=True, slots=True)
class ServerProcess:
    popen: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        port = httpx.URL(self.url).port
        assert port is not None
        return port

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    @property
    def resources(self) -> Resources:
        processes = [Path(f"/proc/{pid}") for pid in (self.popen.pid, *child_pids(self.popen.pid))]
        texts = [(process / "status").read_text() for process in processes]
        statuses = [dict(line.split(":", 1) for line in text.splitlines()) for text in texts]
        return Resources(
            memory=sum(int(status["VmRSS"].split()[0]) << 10 for status in statuses),
            num_threads=sum(int(status["Threads"]) for status in statuses),
            num_descriptors=sum(len(os.listdir(process / "fd")) for process in processes),
        )

    @property
    def processor_seconds(self) -> float:
        """What the process has used of the processors, in all its threads; not what its engine has."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, signal_number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(signal_number)
        return self.popen.wait(EXIT_SECONDS)


Launch = Callable[..., ServerProcess]


@contextmanager
def launcher(directory: Path) -> Iterator[Launch]:
    """Starts servers on free ports and, one after the other, on one store; they are killed in the end."""
    with ExitStack() as stack:

        def launch(*options: str, command: Sequence[str] = SERVE) -> ServerProcess:
            log = stack.enter_context((directory / "log").open("a"))
            popen = subprocess.Popen(
                [*command, "--store", str(directory / "store"), "--port", "0", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # One thread for the forward pass: the other core is for the event loop and for who asks.
                env={**os.environ, "OMP_NUM_THREADS": "1", "POLYPREFIX_DRAIN_NOTICE": "0.1"},
            )
            stack.enter_context(popen)
            stack.callback(popen.kill)
            assert popen.stdout is not None
            url = popen.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), (directory / "log").read_text()[-2000:]
            return ServerProcess(popen, url)

        yield launch


def admit(directory: Path, *tenants: Tenant, scopes: Sequence[Scope] = (Scope.GENERATE, Scope.TASKS)) -> Keys:
    """Put tenants into the registry of the store that servers will use; the secret of one key for each, by name."""
    store = open_store(directory / "store")
    try:
        for tenant in tenants:
            store.tenants.add_tenant(tenant)
        return {tenant.name: store.tenants.create_key(tenant.name, scopes)[1] for tenant in tenants}
    finally:
        store.close()


def prefix_file(name: str) -> bytes:
    """One of the embedded model's prefixes."""
    return (PREFIXES / f"{name}.safetensors").read_bytes()


def upload(server: ServerProcess, key: str | None, task_ids: Sequence[str], name: str = "e2e") -> None:
    """The same prefix as so many tasks."""
    with server.client(key) as http:
        for task_id in task_ids:
            answer = http.put(f"/tasks/{task_id}", content=prefix_file(name))
            assert answer.status_code in (200, 201), answer.text
