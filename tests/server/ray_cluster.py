"""A real Ray cluster of one node, started for the tests on ports of its own, and our application deployed to it.

Ended by process, never by `ray stop`, which ends every Ray on the machine. Knows Ray's commands and its REST API. Knows
nothing of what is asked.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.prefix_store.servers import free_port

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
SECONDS = 120.0  # until replicas run; with the tests of others on the same cores it has taken 40
NUM_REPLICAS = 2


@dataclass(frozen=True)
class Cluster:
    directory: Path
    environment: Mapping[str, str]
    dashboard: str
    port: int
    replica_ports: range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, **args: str) -> None:
        """The application of deploy/ray/serve.yaml with these settings, and wait until all replicas are of them."""
        config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        (application,) = config["applications"]
        application["args"] |= args
        (deployment,) = application["deployments"]
        deployment["autoscaling_config"] |= {"min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS}
        config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        file = self.directory / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [BINARIES / "serve", "deploy", "--address", self.dashboard, file]
        subprocess.run(command, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        """Until as many replicas run as should, all of the last version."""
        until = time.monotonic() + SECONDS
        while not self._is_healthy():
            assert time.monotonic() < until, self._application()
            time.sleep(0.2)

    @property
    def replica_pids(self) -> list[int]:
        (deployment,) = self._application()["deployments"].values()
        return [each["pid"] for each in deployment["replicas"] if each["state"] == "RUNNING"]

    @property
    def replica_urls(self) -> list[str]:
        """Where each replica answers itself, without the proxy."""
        return [f"http://127.0.0.1:{port}" for port in self.replica_ports if _answers(port)]

    def _is_healthy(self) -> bool:
        found = self._application()
        return found.get("status") == "RUNNING" and all(
            deployment["status"] == "HEALTHY" and len(deployment["replicas"]) == NUM_REPLICAS
            for deployment in found["deployments"].values()
        )

    def _application(self) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", headers=headers, trust_env=False)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["applications"].get("polyprefix", {})
        return found


@contextmanager
def ray_cluster(directory: Path, environment: Mapping[str, str]) -> Iterator[Cluster]:
    """`environment` is that of its processes, beside this process's own."""
    dashboard, port, first = free_port(), free_port(), free_port()
    replica_ports = range(first, first + 8)
    everything = {
        **os.environ,
        **environment,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_ports.stop),
        # A proxy elsewhere may hear late of a replica that leaves; the one here is told at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }
    command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={free_port()}", "--num-cpus=4"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with (directory / "ray.log").open("w") as log:
        popen = subprocess.Popen([BINARIES / "ray", *command], env=everything, stdout=log, stderr=log)
    cluster = Cluster(directory, everything, f"http://127.0.0.1:{dashboard}", port, replica_ports)
    try:
        until = time.monotonic() + SECONDS
        while not _answers(dashboard):
            assert popen.poll() is None, (directory / "ray.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield cluster
    finally:
        processes = psutil.Process(popen.pid).children(recursive=True)
        popen.send_signal(signal.SIGTERM)
        popen.wait()
        for process in psutil.wait_procs(processes, timeout=10)[1]:
            process.kill()


def _answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/ping", trust_env=False)
    except httpx.HTTPError:
        return False
    return True
