"""What docs/client.md shows, run from top to bottom against a server with the embedded model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo_tasks import embedded_tasks, publish
from tests.polyprefix.conftest import find_free_port

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo_url(tmp_path: Path) -> Iterator[str]:
    port, log = find_free_port(), tmp_path / "server.log"
    options = ["--store", str(tmp_path / "store"), "--port", str(port), "--dtype", "float32"]
    url = f"http://127.0.0.1:{port}"
    with child_server(options, log) as process, Client(url) as client:
        wait_until_ready(client, process, log)
        publish(client, [task for task in embedded_tasks() if task.task_id == "e2e"])
        yield url


def test_every_example_of_the_page_runs(demo_url, capsys):
    names: dict[str, object] = {"__name__": "docs"}
    examples = list(EXAMPLE.finditer(PAGE.read_text(encoding="utf-8")))
    assert len(examples) >= 8
    for example in examples:
        line = PAGE.read_text(encoding="utf-8").count("\n", 0, example.start(1))
        source = "\n" * line + example[1].replace("http://localhost:8000", demo_url)
        exec(compile(source, str(PAGE), "exec"), names)
    names["client"].close()
    shown = capsys.readouterr().out
    for expected in ("answered:", "failed:", "404 no task", "422 validation"):
        assert expected in shown
