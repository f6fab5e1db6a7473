"""The header's check under a coverage-guided fuzzer. Needs `pip install atheris`, which Linux on x86-64 has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prefix_store.support import native_file
from tests.prefix_store.test_header import BAD, GOOD
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

NUM_RUNS = 1_000_000
MAX_BYTES = 4096  # of one input; a longer one is the same again


def test_no_bytes_make_the_headers_check_raise_anything_else(tmp_path: Path, report: Report) -> None:
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, body in enumerate([GOOD, native_file(), *BAD.values()]):
        (corpus / str(number)).write_bytes(body[:MAX_BYTES])
    fuzzer = [sys.executable, "-m", "tests.torture.fuzz_header", str(corpus)]
    options = [f"-runs={NUM_RUNS}", f"-max_len={MAX_BYTES}", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([*fuzzer, *options], capture_output=True, text=True, check=False)
    found = list(tmp_path.glob("crash-*"))
    ran = re.search(r"Done (\d+) runs", done.stderr)
    count(report, fuzz_runs=int(ran.group(1)) if ran else 0, fuzz_failures=len(found))
    assert done.returncode == 0, done.stderr[-3000:]
    assert found == []
