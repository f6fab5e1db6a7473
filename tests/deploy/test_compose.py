"""compose.yaml and compose.fleet.yaml as they are written, and a server as podman-compose starts it."""

import os
import re
import socket
import subprocess
from typing import Any

import httpx
import pytest
import yaml

from server.settings import Settings
from tests.deploy.containers import podman
from tests.deploy.expressions import ROOT
from tests.deploy.waiting import wait_until_ready

PODMAN_COMPOSE = ROOT / ".venv-deploy/bin/podman-compose"
PROJECT = "polyprefix-compose-test"
FLEET = "compose.fleet.yaml"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def services(name: str = "compose.yaml") -> dict[str, Any]:
    """By name; one that extends another file's is what the two make together."""
    found: dict[str, Any] = load(name)["services"]
    for service in found.values():
        if base := service.pop("extends", None):
            other = services(base["file"])[base["service"]]
            environment = {**other.get("environment", {}), **service.get("environment", {})}
            service.update(other | service | ({"environment": environment} if environment else {}))
    return found


of_every_service = pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file in ("compose.yaml", FLEET) for name in services(file)]
)


def test_servers_ask_for_keys_and_run_with_as_few_rights_as_they_need() -> None:
    for server in (services()["polyprefix"], services()["polyprefix-gpu"], services(FLEET)["polyprefix"]):
        assert server["command"] == ["serve"]
        assert (server["read_only"], server["cap_drop"], server["security_opt"]) == (
            True,
            ["ALL"],
            ["no-new-privileges"],
        )


def test_one_server_makes_its_first_key_and_of_several_none_does() -> None:
    for name in ("polyprefix", "polyprefix-gpu"):
        assert services()[name]["environment"]["POLYPREFIX_FIRST_KEY_FILE"] == "/store/first-key"
    assert "POLYPREFIX_FIRST_KEY_FILE" not in services(FLEET)["polyprefix"]["environment"]


@of_every_service
def test_its_image_is_one_release(file: str, name: str) -> None:
    image = services(file)[name]["image"]
    assert image in ("${IMAGE:-polyprefix}", "${IMAGE:-polyprefix}-gpu") or re.fullmatch(
        r"[\w./-]+:v?\d+\.\d+[\w.-]*", image
    )


@of_every_service
def test_only_this_machine_reaches_it(file: str, name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in services(file)[name].get("ports", ()))


@of_every_service
def test_what_is_mounted_is_there(file: str, name: str) -> None:
    for source in (mount.partition(":")[0] for mount in services(file)[name].get("volumes", ())):
        assert (ROOT / source).is_dir() if source.startswith("./") else source in load(file)["volumes"]


@of_every_service
def test_its_secrets_are_not_in_the_file(file: str, name: str) -> None:
    for variable, value in services(file)[name].get("environment", {}).items():
        if re.search("KEY|PASSWORD|SECRET", variable) and variable != "POLYPREFIX_FIRST_KEY_FILE":
            assert re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value)


@of_every_service
def test_what_it_is_told_are_settings(file: str, name: str) -> None:
    told = {variable for variable in services(file)[name].get("environment", {}) if variable.startswith("POLYPREFIX")}
    assert told <= {f"POLYPREFIX_{field.upper()}" for field in Settings.model_fields}


@pytest.mark.parametrize("file", ["compose.yaml", FLEET])
def test_every_setting_is_passed_on_that_the_file_does_not_settle(file: str) -> None:
    told = services(file)["polyprefix"]["environment"]
    settled = {"host", "port", "no_auth", "first_key_file", "drain_timeout", *(() if file == FLEET else ("registry",))}
    for name in Settings.model_fields.keys() - settled:
        assert f"POLYPREFIX_{name.upper()}" in told
    assert "OMP_NUM_THREADS" in told


def test_prometheus_scrapes_the_port_that_the_metrics_have() -> None:
    (job,) = load("deploy/prometheus/prometheus.yaml")["scrape_configs"]
    port = services()["polyprefix"]["environment"]["POLYPREFIX_METRICS_PORT"]
    assert (job["job_name"], job["static_configs"]) == ("polyprefix", [{"targets": [f"polyprefix:{port}"]}])


def test_prometheus_scrapes_every_server_of_a_fleet() -> None:
    (job,) = load("deploy/prometheus/fleet.yaml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    port = services(FLEET)["polyprefix"]["environment"]["POLYPREFIX_METRICS_PORT"]
    assert (job["job_name"], found["names"], found["port"]) == ("polyprefix", ["polyprefix"], int(port))
    assert "--config.file=/etc/prometheus/fleet.yaml" in services(FLEET)["prometheus"]["command"]


def test_the_balancer_alone_has_a_port_and_waits_as_long_as_a_request_may_last() -> None:
    assert [name for name, service in services(FLEET).items() if ":8000" in str(service.get("ports"))] == ["balancer"]
    config = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    timeouts = {name: int(seconds) for name, seconds in re.findall(r"^ +timeout (\S+) (\d+)s$", config, re.MULTILINE)}
    defaults = Settings()
    assert min(timeouts["client"], timeouts["server"]) > defaults.request_timeout
    assert re.search(r"^ +server-template server \d+ polyprefix:8000 ", config, re.MULTILINE)
    assert re.search(r"^ +retry-on conn-failure$", config, re.MULTILINE)


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
