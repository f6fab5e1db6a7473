"""What the chart makes: one careful server with a volume, or several that share a bucket and a database."""

import re
from typing import Any

import pytest
import yaml

from tests.deploy.charts import BUCKET, RAY, Resources, environment, notes, render
from tests.deploy.expressions import RULES

pytestmark = [pytest.mark.deploy]
BUCKET_ALONE = ("store=s3://bucket/path", "registrySecret.name=database")


@pytest.fixture(scope="module")
def resources() -> Resources:
    return render()


@pytest.fixture(scope="module")
def pod(resources: Resources) -> dict[str, Any]:
    return pod_of(resources)


def pod_of(resources: Resources) -> dict[str, Any]:
    spec: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return spec


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
    patient = pod_of(render("settings.drain_notice=7.5", "settings.drain_timeout=120"))
    assert patient["terminationGracePeriodSeconds"] == 8 + 120 + 10
    names = [each["name"] for each in patient["containers"][0]["env"]]
    assert len(names) == len(set(names))
    assert (environment(patient)["POLYPREFIX_DRAIN_NOTICE"], environment(pod)["POLYPREFIX_DRAIN_NOTICE"]) == (
        "7.5",
        "5",
    )
    assert pod["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/health"


def test_only_who_is_named_reaches_the_metrics(resources: Resources) -> None:
    ingress = resources["NetworkPolicy"]["spec"]["ingress"]
    (metrics,) = [rule for rule in ingress if rule["ports"] == [{"port": "metrics"}]]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    closed = render("networkPolicy.metricsFrom=null")["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["ports"] for rule in closed] == [[{"port": "http"}]]


def test_settings_become_the_servers_environment() -> None:
    found = environment(pod_of(render("settings.max_num_seqs=32", "model=/models/gpt2", "threads=8")))
    assert (found["POLYPREFIX_MAX_NUM_SEQS"], found["POLYPREFIX_MODEL"], found["OMP_NUM_THREADS"]) == (
        "32",
        "/models/gpt2",
        "8",
    )


def test_a_store_that_was_restored_beside_the_old_one_can_be_served() -> None:
    pod = pod_of(render("settings.store=/store/again"))
    assert environment(pod)["POLYPREFIX_STORE"] == "/store/again"
    assert "/store" in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}


def test_a_value_that_there_is_not_is_refused() -> None:
    with pytest.raises(AssertionError, match="'replica' not allowed"):
        render("replica=3")


def test_servers_that_share_a_bucket_come_and_go_one_after_the_other() -> None:
    made = render(BUCKET, "autoscaling.enabled=false", "replicas=4")
    assert made.keys() == {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
    assert made["Deployment"]["spec"]["replicas"] == 4
    assert made["Deployment"]["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    assert made["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    spread = pod_of(made)["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_servers_that_share_a_bucket_keep_nothing_and_read_their_secrets_from_the_cluster() -> None:
    pod = pod_of(render(BUCKET, "serviceAccountName=reader"))
    found = environment(pod)
    assert found["POLYPREFIX_STORE"] == "s3://bucket/path"
    assert found["POLYPREFIX_REGISTRY"] == {"secretKeyRef": {"name": "database", "key": "registry"}}
    assert "POLYPREFIX_FIRST_KEY_FILE" not in found  # each would make one, in a directory of its own
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("reader", False)
    assert {volume["name"]: volume.get("emptyDir") for volume in pod["volumes"]} == {"tmp": {}, "models": {}}


def test_servers_that_share_a_bucket_reach_what_is_named_and_names() -> None:
    names, bucket, database = render(BUCKET)["NetworkPolicy"]["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert (bucket["ports"], database["ports"]) == ([{"port": 443}], [{"port": 5432}])


def test_a_busy_fleet_grows() -> None:
    made = render(BUCKET, "autoscaling.maxReplicas=20")
    scaler = made["HorizontalPodAutoscaler"]["spec"]
    assert "replicas" not in made["Deployment"]["spec"]  # or each upgrade would take its servers away
    assert scaler["scaleTargetRef"] == {
        "apiVersion": made["Deployment"]["apiVersion"],
        "kind": "Deployment",
        "name": made["Deployment"]["metadata"]["name"],
    }
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 20)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["replicas=2"], "/store': '' does not match pattern"),
        (["autoscaling.enabled=true"], "/store': '' does not match pattern"),
        (["registrySecret.name=database"], "/store': '' does not match pattern"),
        (["storeSecret=bucket"], "/store': '' does not match pattern"),
        (["store=http://bucket"], "/store': 'http://bucket' does not match pattern"),
        ([BUCKET, "registrySecret.name="], "/registrySecret/name': minLength"),
        ([BUCKET, "networkPolicy.egress=null"], "/networkPolicy': missing property 'egress'"),
        ([*BUCKET_ALONE, "networkPolicy.enabled=true"], "/networkPolicy/egress': minItems"),
        (["ray.enabled=true"], "/store': '' does not match pattern"),
        ([RAY, "ray.authSecret="], "/ray/authSecret': minLength"),
        ([RAY, "autoscaling.enabled=true"], "/autoscaling/enabled': value must be false"),
        (["settings.registry=postgresql://user:password@host/database"], "invalid propertyName 'registry'"),
    ],
    ids=str,
)
def test_values_that_make_no_fleet_are_refused(values: list[str], said: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        render(*values)


def test_whoever_installs_it_is_told_how_to_get_a_key() -> None:
    assert "cat /store/first-key" in notes()
    assert "polyprefix admin key create" in notes(BUCKET)


def test_an_operator_of_prometheus_gets_the_same_rules_and_the_job_that_they_name() -> None:
    made = render("metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true")
    assert made["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())
    monitor, service = made["ServiceMonitor"]["spec"], made["Service"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "polyprefix"
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
