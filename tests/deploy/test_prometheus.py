"""A real Prometheus scrapes a real server, evaluates the rules, and is asked all that the dashboard asks."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.expressions import ROOT, RULES, all_names, panel_expressions, rules
from tests.deploy.waiting import wait_until_ready

pytestmark = [pytest.mark.deploy]
POCKET = ROOT / "polyprefix/pocket/prefixes"
TASKS = ("e2e", "events_acts")
MAX_SECONDS = 60


@contextmanager
def server(directory: Path) -> Iterator[httpx.Client]:
    """`polyprefix serve` with the embedded model; it counts by tenant and by task, and has a label for one task."""
    counting = {"POLYPREFIX_METRICS_BY_TENANT": "true", "POLYPREFIX_METRICS_MAX_TASKS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "polyprefix", "serve", "--port", "0", "--store", str(directory / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | counting) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=process.stdout.readline().strip(), timeout=30, trust_env=False) as http:
                yield http
        finally:
            process.terminate()


@contextmanager
def prometheus(target: str, directory: Path) -> Iterator[httpx.Client]:
    """Scrapes `target` each second, and evaluates our rules as often."""
    command = shutil.which("prometheus")
    assert command is not None, "needs prometheus (Debian: apt-get install prometheus)"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*listener.getsockname())
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "polyprefix", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    options = {
        "config.file": directory / "prometheus.yaml",
        "storage.tsdb.path": directory / "data",
        "web.listen-address": address,
        "log.level": "error",
    }
    with subprocess.Popen([command, *(f"--{name}={value}" for name, value in options.items())]) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30, trust_env=False) as http:
                wait_until_ready(http, "/-/ready")
                yield http
        finally:
            process.terminate()


def send_traffic(http: httpx.Client) -> None:
    """Uploads, two tasks and the bare backbone at once, a stream, and a task that there is not."""

    def generate(task_id: str, max_new_tokens: int = 16) -> httpx.Response:
        body = {"task_id": task_id, "inputs": "once", "parameters": {"max_new_tokens": max_new_tokens}}
        return http.post("/generate", json=body)

    for task_id in TASKS:
        http.put(f"/tasks/{task_id}", content=(POCKET / f"{task_id}.safetensors").read_bytes()).raise_for_status()
    with ThreadPoolExecutor(3) as pool:
        assert [answer.status_code for answer in pool.map(generate, (*TASKS, "base"))] == [200] * 3
    assert http.post("/generate_stream", json={"inputs": "once"}).status_code == 200
    assert generate("nobody").status_code == 404


def query(http: httpx.Client, expression: str) -> list[Any]:
    """The vector that the expression gives now."""
    answer = http.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    result: list[Any] = answer.json()["data"]["result"]
    return result


def test_every_name_exists_every_panel_has_values_and_no_alert_fires(tmp_path: Path, report: dict[str, float]) -> None:
    with server(tmp_path) as served, prometheus(served.base_url.netloc.decode(), tmp_path) as http:
        panels = panel_expressions()
        missing, empty = all_names(), set(panels)
        deadline = time.monotonic() + MAX_SECONDS
        while (missing or empty) and time.monotonic() < deadline:
            send_traffic(served)
            time.sleep(1)
            missing = {name for name in missing if not query(http, name)}
            empty = {name for name in empty if not query(http, panels[name])}
        report["missing_metrics"] = len(missing)
        assert missing == set()
        assert empty == set()
        alerts = [rule for rule in rules() if rule.is_alert]
        assert {alert.name: query(http, alert.expression) for alert in alerts} == {alert.name: [] for alert in alerts}
        loaded = http.get("/api/v1/rules").json()["data"]["groups"]
        evaluated = [rule for group in loaded for rule in group["rules"]]
        assert {rule["name"]: rule["health"] for rule in evaluated} == {rule.name: "ok" for rule in rules()}
