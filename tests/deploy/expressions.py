"""What the rules and the dashboard ask Prometheus: their expressions, and the metrics' names in them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/polyprefix.json"

_NO_NAMES = re.compile(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on)\s*\([^)]*\)")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?![\w:]|\s*\()")
_OPERATORS = {"and", "or", "unless"}


@dataclass(frozen=True)
class Rule:
    name: str
    expression: str
    annotations: dict[str, str]
    is_alert: bool


def rules() -> list[Rule]:
    return [
        Rule(rule.get("alert") or rule["record"], rule["expr"], rule.get("annotations", {}), "alert" in rule)
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    ]


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return board


def panel_expressions() -> dict[str, str]:
    """By panel and target: with every server, over ten seconds."""
    return {
        f"{panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }


def other_expressions() -> list[str]:
    """What the dashboard asks besides its panels: its variable's values and its annotations."""
    board = dashboard()
    queries = [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    values = [re.sub(r"label_values\((.*), \w+\)", r"\1", query["query"]) for query in queries]
    return values + [filled_in(annotation["expr"]) for annotation in board["annotations"]["list"]]


def filled_in(expression: str) -> str:
    return expression.replace("$instance", ".*").replace("$__rate_interval", "10s")


def metric_names(expression: str) -> set[str]:
    return set(_NAME.findall(_NO_NAMES.sub(" ", expression))) - _OPERATORS


def all_names() -> set[str]:
    expressions = [rule.expression for rule in rules()] + [*panel_expressions().values()] + other_expressions()
    return set().union(*map(metric_names, expressions))
