"""What helm makes of the chart, as a person who installs it would."""

import os
import shutil
import subprocess
from typing import Any

import yaml

from tests.deploy.expressions import ROOT

CHART = ROOT / "deploy/helm/polyprefix"
VALUES = ROOT / "tests/deploy/values"
BUCKET = f"--values={VALUES / 'bucket.yaml'}"
RAY = f"--values={VALUES / 'ray.yaml'}"

Resources = dict[str, dict[str, Any]]  # by kind


def render(*values: str) -> Resources:
    """With `NAME=VALUE`s, or options of helm's. What is refused is an `AssertionError` with helm's words."""
    return {each["kind"]: each for each in yaml.safe_load_all(helm("template", *values))}


def notes(*values: str) -> str:
    """What is said at the end of an installation."""
    return helm("install", "--dry-run=client", *values).partition("NOTES:")[2]


def helm(action: str, *arguments: str) -> str:
    program = os.environ.get("HELM") or shutil.which("helm")
    assert program is not None, "needs helm, on the PATH or where HELM says"
    options = [each if each.startswith("--") else f"--set={each}" for each in arguments]
    done = subprocess.run([program, action, "polyprefix", str(CHART), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    """Of its container, by name: the value, or where it comes from."""
    return {each["name"]: each.get("value") or each["valueFrom"] for each in pod["containers"][0]["env"]}
