"""What the pages show in Python, run from top to bottom against a server with the embedded model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo_tasks import embedded_tasks, publish
from tests.polyprefix.conftest import find_free_port

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"client.md": 8, "composition.md": 2}  # with the least number of examples
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("demo")
    port, log = find_free_port(), folder / "server.log"
    options = ["--store", str(folder / "store"), "--port", str(port), "--dtype", "float32"]
    url = f"http://127.0.0.1:{port}"
    with child_server(options, log) as process, Client(url) as client:
        wait_until_ready(client, process, log)
        publish(client, [task for task in embedded_tasks() if task.task_id in ("e2e", "events_1")])
        yield url


def run_page(name: str, demo_url: str) -> None:
    names: dict[str, object] = {"__name__": "docs"}
    page = (DOCS / name).read_text(encoding="utf-8")
    examples = list(EXAMPLE.finditer(page))
    assert len(examples) >= PAGES[name]
    for example in examples:
        line = page.count("\n", 0, example.start(1))
        source = "\n" * line + example[1].replace("http://localhost:8000", demo_url)
        exec(compile(source, str(DOCS / name), "exec"), names)
    names["client"].close()


def test_every_example_of_the_clients_page_runs(demo_url, capsys):
    run_page("client.md", demo_url)
    shown = capsys.readouterr().out
    for expected in ("answered:", "failed:", "404 no task", "422 validation"):
        assert expected in shown


def test_every_example_of_composition_runs(demo_url, capsys):
    run_page("composition.md", demo_url)
    assert "('events_1', 1, 0.3)" in capsys.readouterr().out
