"""How many bad inputs the quick tests send, and how many were answered otherwise than they must be: for the report."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

SENDING = ("tests/server/test_bad_inputs.py", "tests/server/test_http.py", "tests/prefix_store/test_header.py")


def test_every_bad_input_is_answered_as_it_must_be(tmp_path: Path, report: Report) -> None:
    results = tmp_path / "results.xml"
    subprocess.run([sys.executable, "-m", "pytest", f"--junitxml={results}", *SENDING], check=False)
    suites = ElementTree.parse(results).getroot()
    num_sent, num_wrong = (
        sum(int(suite.get(name, "0")) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"))
    )
    count(report, bad_inputs=num_sent, bad_inputs_wrong=num_wrong)
    assert num_sent > 0
    assert num_wrong == 0
