"""What is in `deploy/` fits the server and the documents. Needs no tool; the tests that do are marked."""

import re
import tomllib
from pathlib import Path

import yaml

from tests.deploy.expressions import ROOT, all_names, dashboard, metric_names, rules
from tests.server.conftest import running
from tests.server.fakes import EchoEngine

PROMETHEUS_OWN = {"up"}


def exposed_names(exposition: str) -> set[str]:
    """Every name that can be asked for, also where there is no value yet."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    return names


def test_every_name_in_a_rule_or_a_panel_is_a_metric_of_the_server(tmp_path: Path, byte_tokenizer) -> None:  # type: ignore[no-untyped-def]
    with running(tmp_path / "store", byte_tokenizer, EchoEngine()) as server:
        exposed = exposed_names(server.http.get("/metrics").text)
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    assert all_names() - exposed - recorded - PROMETHEUS_OWN == set()


def test_names_are_found_wherever_they_stand() -> None:
    expression = 'sum by (le) (rate(a_total{b="c"}[5m])) / on (d) histogram_quantile(0.9, e:f) or 0 * g unless h'
    assert metric_names(expression) == {"a_total", "e:f", "g", "h"}


def test_every_alert_has_a_heading_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs/operate.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in rules() if rule.is_alert]
    assert {alert.name for alert in alerts} <= set(headings)
    assert {alert.annotations["runbook"] for alert in alerts} == {
        f"docs/operate.md#{alert.name.lower()}" for alert in alerts
    }


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_chart_is_of_this_release() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "deploy/helm/polyprefix/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (release, release)


def test_the_chart_names_the_ray_that_is_installed() -> None:
    (pinned,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "deploy/helm/polyprefix/values.yaml").read_text())["ray"]["version"] == pinned
