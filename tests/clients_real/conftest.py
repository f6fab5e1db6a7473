"""Real clients, unmodified, against a real server on the embedded model; what they did is written down in docs/.

Run by `make test-clients`, in environments that hold the clients and none of ours: their pins contradict each other.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "polyprefix" / "pocket"
REPORT = ROOT / "docs" / "clients.json"
PYTHON = os.environ.get("POLYPREFIX_PYTHON", str(ROOT / ".venv" / "bin" / "python"))  # the server's own
# What some decoders take for the end of a line, an emoji of several tokens, and text from right to left.
ODD_TEXT = "a\u2028b\u0085c 🌊 שלום"
CHAT_TEMPLATE = {"system": "{content}\n", "user": "Q: {content}\n", "assistant": "A: {content}\n"}

outcomes: dict[str, Counter[str]] = {}
passed: dict[str, dict[str, None]] = {}  # by client, what works, in the order of the tests
measured: dict[str, float] = {}


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """A server in a process of its own; its address."""
    command = [PYTHON, "-m", "polyprefix", "serve", "--model", str(POCKET), "--dtype", "float32", "--port", "0"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--store", str(directory / "store")], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), (directory / "log").read_text()
            yield url
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without keys, with the task e2e, which samples nothing by itself, and can chat."""
    with serving(tmp_path_factory.mktemp("server")) as url:
        prefix = (POCKET / "prefixes" / "e2e.safetensors").read_bytes()
        requests.put(f"{url}/tasks/e2e", data=prefix, timeout=60).raise_for_status()
        config = {"chat_template": CHAT_TEMPLATE, "parameters": {"max_new_tokens": 24}}
        requests.patch(f"{url}/tasks/e2e", json={"config": config}, timeout=60).raise_for_status()
        yield url


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with keys: its address, and the key of a tenant that may ask twice a minute."""
    directory = tmp_path_factory.mktemp("guarded")
    admin = [PYTHON, "-m", "polyprefix", "admin"]
    store = ["--store", str(directory / "store")]
    subprocess.run([*admin, "tenant", "add", "acme", "--limit", "requests_per_minute=2", *store], check=True, cwd=ROOT)
    made = subprocess.run(
        [*admin, "key", "create", "acme", *store], check=True, capture_output=True, text=True, cwd=ROOT
    )
    key = next(word for word in made.stdout.split() if word.startswith("pp_"))
    with serving(directory) as url:
        yield url, key


@pytest.fixture(scope="session")
def expected(url: str) -> dict[str, Any]:
    """What our own route answers, greedily: the text that every client has to bring."""
    body = {"task_id": "e2e", "inputs": "name : Blue Spice", "parameters": {"max_new_tokens": 12, "details": True}}
    return requests.post(f"{url}/generate", json=body, timeout=60).json()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "failed":
        client = Path(report.location[0]).stem.removeprefix("test_")
        outcomes.setdefault(client, Counter())[report.outcome] += 1
        if report.outcome == "passed":
            name = report.location[2].partition("[")[0]
            passed.setdefault(client, {})[name.removeprefix("test_").replace("_", " ")] = None


def pytest_sessionfinish() -> None:
    """Add this environment's clients to the report of the others'; a client that was not run again stays."""
    if not outcomes:
        return
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {"clients": {}}
    for client, counts in outcomes.items():
        cases = {"cases": counts.total(), "failures": counts["failed"], "works": list(passed.get(client, {}))}
        report["clients"][client] = {"version": version(client.replace("_", "-")), **cases}
    of_all = report["clients"].values()
    report["client_cases"] = sum(client["cases"] for client in of_all)
    report["client_failures"] = sum(client["failures"] for client in of_all)
    report.update(measured)
    REPORT.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    rows = [
        f"| `{name}` | {c['version']} | {'; '.join(c['works'])} | {c['cases']} | {c['failures']} |"
        for name, c in sorted(report["clients"].items())
    ]
    page = REPORT.with_suffix(".md")
    head, mark, _ = page.read_text().partition("| client |")
    assert mark, "docs/clients.md has no table"
    page.write_text(
        "\n".join([f"{head}{mark} version | what works | cases | failures |", "|---|---|---|---|---|", *rows, ""])
    )
