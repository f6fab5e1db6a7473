"""What the chart makes: one careful server with a volume, that asks for keys."""

import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.deploy.expressions import ROOT, RULES

pytestmark = [pytest.mark.deploy]
CHART = ROOT / "deploy/helm/polyprefix"

Resources = dict[str, dict[str, Any]]  # by kind


def render(*values: str) -> Resources:
    helm = os.environ.get("HELM") or shutil.which("helm")
    assert helm is not None, "needs helm, on the PATH or where HELM says"
    command = [helm, "template", "polyprefix", str(CHART), *(f"--set={value}" for value in values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def resources() -> Resources:
    return render()


@pytest.fixture(scope="module")
def pod(resources: Resources) -> dict[str, Any]:
    spec: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return spec


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in pod["containers"][0]["env"]}


def test_there_is_one_replica_that_leaves_before_the_next_comes(resources: Resources) -> None:
    spec = resources["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert resources["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert resources.keys() == {"Deployment", "Service", "PersistentVolumeClaim", "NetworkPolicy"}


def test_it_asks_for_keys_and_makes_the_first_one(pod: dict[str, Any]) -> None:
    assert pod["containers"][0]["args"] == ["serve"]
    assert environment(pod)["POLYPREFIX_FIRST_KEY_FILE"] == "/store/first-key"


def test_it_runs_with_as_few_rights_as_it_needs(pod: dict[str, Any]) -> None:
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_its_service_cannot_set_its_port(pod: dict[str, Any]) -> None:
    """Kubernetes would say POLYPREFIX_PORT=tcp://… to every pod beside a service of that name."""
    assert pod["enableServiceLinks"] is False


def test_it_has_longer_to_end_than_it_drains(pod: dict[str, Any]) -> None:
    assert pod["terminationGracePeriodSeconds"] >= 40
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/health"


def test_only_who_is_named_reaches_the_metrics(resources: Resources) -> None:
    ingress = resources["NetworkPolicy"]["spec"]["ingress"]
    (metrics,) = [rule for rule in ingress if rule["ports"] == [{"port": "metrics"}]]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    closed = render("networkPolicy.metricsFrom=null")["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["ports"] for rule in closed] == [[{"port": "http"}]]


def test_settings_become_the_servers_environment() -> None:
    pod = render("settings.max_num_seqs=32", "model=/models/gpt2", "threads=8")["Deployment"]["spec"]["template"][
        "spec"
    ]
    found = environment(pod)
    assert (found["POLYPREFIX_MAX_NUM_SEQS"], found["POLYPREFIX_MODEL"], found["OMP_NUM_THREADS"]) == (
        "32",
        "/models/gpt2",
        "8",
    )


def test_a_value_that_there_is_not_is_refused() -> None:
    with pytest.raises(AssertionError, match="replicas"):
        render("replicas=3")


def test_an_operator_of_prometheus_gets_the_same_rules_and_the_job_that_they_name() -> None:
    made = render("metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true")
    assert made["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    monitor, service = made["ServiceMonitor"]["spec"], made["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "polyprefix"
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
