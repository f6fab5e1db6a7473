"""What the documents name is there: settings and metrics. What they show in Python compiles."""

import re
from pathlib import Path

import pytest

from server.settings import Settings
from tests.deploy.test_files import exposed_names
from tests.docs.pages import PAGES, ROOT, Block, blocks, name_of
from tests.server.conftest import running
from tests.server.fakes import EchoEngine

SETTING = re.compile(r"\bPOLYPREFIX_([A-Z_]+)\b")
OF_CLIENTS = {"URL", "API_KEY"}  # the commands', which are no server
OF_DEVELOPERS = {"PYTHON"}  # the TypeScript client's tests
METRIC_TABLE = re.compile(r"^\| name, after `polyprefix_` \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)
METRIC = re.compile(r"`([a-z_…]+)(?:\{([a-z,]+)\})?`")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_is_named_is_one(page: Path) -> None:
    known = {name.upper() for name in Settings.model_fields} | OF_CLIENTS | OF_DEVELOPERS
    assert set(SETTING.findall(page.read_text(encoding="utf-8"))) - known == set()


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.page}:{block.line}")
def test_every_example_in_python_compiles(block: Block) -> None:
    compile(block.code, block.page, "exec")


def test_every_metric_of_the_operators_table_is_exposed(tmp_path: Path, byte_tokenizer) -> None:  # type: ignore[no-untyped-def]
    with running(tmp_path / "store", byte_tokenizer, EchoEngine()) as server:
        exposed = exposed_names(server.http.get("/metrics").text)
    table = METRIC_TABLE.search((ROOT / "docs/operate.md").read_text(encoding="utf-8"))
    assert table is not None
    rows = [row.split("|")[1] for row in table[0].splitlines()[2:]]
    optional = [row for row in rows if "tenant" in row or "task_" in row]  # only where an operator asks for them
    named = {name for row in rows if row not in optional for name, _ in METRIC.findall(row)}
    whole = {f"polyprefix_{name.replace('…', 'prefix_cache')}" for name in named}
    unknown = {name for name in whole if name not in exposed and f"{name}_count" not in exposed}
    assert len(whole) > 25
    assert unknown == set()
