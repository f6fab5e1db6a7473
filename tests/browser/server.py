"""A server in a process of its own, on the embedded model, and what a test asks of it beside the browser."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "polyprefix" / "pocket"
PYTHON = os.environ.get("POLYPREFIX_PYTHON", str(ROOT / ".venv" / "bin" / "python"))  # the server's own
TASKS: dict[str, dict[str, Any]] = {task["task_id"]: task for task in json.loads((POCKET / "tasks.json").read_text())}
NUM_SLOTS = 24


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The server's address."""
    command = [PYTHON, "-m", "polyprefix", "serve", "--dtype", "float32", "--port", "0"]
    options = ["--store", str(directory / "store"), "--max-num-seqs", str(NUM_SLOTS)]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), (directory / "log").read_text()
            yield url
        finally:
            process.terminate()
            process.wait(60)


def client_of(url: str, key: str | None = None) -> httpx.Client:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def prefix_of(task_id: str) -> bytes:
    return (POCKET / "prefixes" / f"{task_id}.safetensors").read_bytes()


def publish(http: httpx.Client, task_id: str, name: str | None = None) -> None:
    """Put one of the embedded tasks on the server, by this name."""
    path, task = f"/tasks/{name or task_id}", TASKS[task_id]
    http.put(path, content=prefix_of(task_id)).raise_for_status()
    config = {name: task[name] for name in ("description", "prompt_template", "parameters")}
    http.patch(path, json={"config": config}).raise_for_status()


def generated(http: httpx.Client, task_id: str | None, inputs: str, **parameters: Any) -> str:
    answer = http.post("/generate", json={"task_id": task_id, "inputs": inputs, "parameters": parameters})
    answer.raise_for_status()
    return str(answer.json()["generated_text"])


def run_admin(directory: Path, *arguments: str) -> str:
    command = [PYTHON, "-m", "polyprefix", "admin", *arguments, "--store", str(directory / "store")]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def key_of(output: str) -> str:
    """The key in what `admin key create` prints."""
    return next(word for word in output.split() if word.startswith("pp_"))
