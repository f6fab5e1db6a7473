"""compose.yaml as it is written, and its server as podman-compose starts it."""

import os
import socket
import subprocess
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.containers import podman
from tests.deploy.expressions import ROOT
from tests.deploy.waiting import wait_until_ready

PODMAN_COMPOSE = ROOT / ".venv-deploy/bin/podman-compose"
PROJECT = "polyprefix-compose-test"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return found


def test_servers_ask_for_keys_and_run_with_as_few_rights_as_they_need() -> None:
    for name in ("polyprefix", "polyprefix-gpu"):
        server = services()[name]
        assert server["command"] == ["serve"]
        assert server["environment"]["POLYPREFIX_FIRST_KEY_FILE"] == "/store/first-key"
        assert (server["read_only"], server["cap_drop"], server["security_opt"]) == (
            True,
            ["ALL"],
            ["no-new-privileges"],
        )


def test_prometheus_scrapes_the_port_that_the_metrics_have() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    port = services()["polyprefix"]["environment"]["POLYPREFIX_METRICS_PORT"]
    assert (job["job_name"], job["static_configs"]) == ("polyprefix", [{"targets": [f"polyprefix:{port}"]}])


def test_what_is_mounted_is_there() -> None:
    for service in services().values():
        folders = [mount.partition(":")[0] for mount in service["volumes"] if mount.startswith("./")]
        assert all((ROOT / folder).is_dir() for folder in folders)


@pytest.mark.image
def test_it_starts_a_server_with_a_key() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    image = os.environ.get("IMAGE", "localhost/polyprefix:test")
    environment = {**os.environ, "IMAGE": image, "PORT": str(port)}

    def compose(*arguments: str) -> None:
        command = [str(PODMAN_COMPOSE), "--project-name", PROJECT, *arguments]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    compose("up", "--detach", "--no-build", "polyprefix")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            wait_until_ready(http)
            secret = podman("exec", f"{PROJECT}_polyprefix_1", "cat", "/store/first-key").decode().strip()
            assert http.get("/info").status_code == 401
            assert http.get("/info", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    finally:
        compose("down", "--volumes")
