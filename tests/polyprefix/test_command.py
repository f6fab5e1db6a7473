"""The command `polyprefix`, run as a process: what it lists, what it refuses, and what it leaves unloaded."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

import polyprefix
from polyprefix.cli import COMMANDS, GROUP, build, load

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polyprefix", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_lists_every_command_with_a_line():
    listed = run("--help").stdout
    assert set(COMMANDS) == set(tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][GROUP])
    for name, (help_line, _) in COMMANDS.items():
        assert name in listed
        assert help_line.split()[0] in listed


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["tasks", "--help"], ["upload", "--help"], ["delete", "--help"]]
)
def test_a_command_that_needs_no_torch_does_not_load_it(arguments):
    script = (
        "import sys, atexit\n"
        "heavy = {'torch', 'fastapi', 'transformers', 'numpy'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['polyprefix', *{arguments!r}]\n"
        "from polyprefix.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "Usage" in done.stdout
    assert done.stdout.endswith("LOADED []\n")


def test_importing_the_client_loads_no_torch():
    script = "import sys; from polyprefix import Client, AsyncClient; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


def test_a_command_of_another_distribution_is_listed_by_its_name_alone(tmp_path, monkeypatch):
    distribution = tmp_path / "other-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text(f"[{GROUP}]\nfrom-elsewhere = other:command\n")
    monkeypatch.syspath_prepend(tmp_path)
    listed = CliRunner().invoke(build([]), ["--help"]).stdout
    (line,) = (line for line in listed.splitlines() if "from-elsewhere" in line)
    assert line.strip("│ ") == "from-elsewhere"


def test_the_version_is_the_distributions():
    assert run("--version").stdout == f"polyprefix {polyprefix.__version__}\n"


@pytest.mark.parametrize("arguments", [["tasks", "--bogus"], ["--bogus"], ["bogus"]])
def test_what_is_unknown_is_refused(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "bogus" in done.stderr


def test_no_command_shows_the_help():
    assert "generate" in run().stdout


def test_a_missing_extra_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        load(EntryPoint("serve", "no_such_library.cli:serve", GROUP))
    assert ended.value.code == 1
    assert "needs no_such_library: pip install 'polyprefix[server]'" in capsys.readouterr().err


def test_every_command_of_the_client_loads():
    for entry_point in entry_points(group=GROUP):
        if entry_point.value.startswith(("clients", "polyprefix")):
            assert callable(load(entry_point))
