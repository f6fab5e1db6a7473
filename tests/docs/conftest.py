"""Files that a reader of the documents has at hand, made once by the commands that make such files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyprefix.demo_tasks import POCKET
from tests.deploy.conftest import report  # noqa: F401  the figures of operations

PREFIX = POCKET / "prefixes" / "e2e.safetensors"
INPUTS = ["name : Blue Spice | Type : pub", "name : Aromi | Type : restaurant", "name : Cocum | food : Thai"]


def polyprefix(*words: str | Path, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "polyprefix", *map(str, words)], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    polyprefix("convert", PREFIX, "my-peft-folder", "--to", "peft", "--model", POCKET, folder=folder)
    polyprefix("convert", PREFIX, "checkpoint-2100", "--to", "original", folder=folder)
    polyprefix("store", "backup", "monday", "--store", "old-store", folder=folder)
    adapter = (folder / "my-peft-folder" / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(adapter)
    (folder / "inputs.txt").write_text("\n".join(INPUTS) + "\n")
    (folder / "table.tsv").write_text("".join(f"{number}\t{line}\n" for number, line in enumerate(INPUTS)))
    for name in ("train.jsonl", "dev.jsonl"):
        pairs = [{"input": line, "target": f"{line.split()[2]} is a place."} for line in INPUTS]
        (folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder
