"""What the chart makes for KubeRay: replicas of Ray Serve, in a cluster that nobody without a token enters."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from server.settings import Settings
from tests.deploy.charts import RAY, Resources, environment, notes, render
from tests.deploy.expressions import ROOT

pytestmark = [pytest.mark.deploy]
SCHEMA = json.loads((ROOT / "tests/deploy/rayservice.schema.json").read_text())
KUBERNETES_VALIDATE = ROOT / ".venv-deploy/bin/kubernetes-validate"


@pytest.fixture(scope="module")
def resources() -> Resources:
    return render(RAY)


@pytest.fixture(scope="module")
def cluster(resources: Resources) -> dict[str, Any]:
    config: dict[str, Any] = resources["RayService"]["spec"]["rayClusterConfig"]
    return config


@pytest.fixture(scope="module")
def head(cluster: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = cluster["headGroupSpec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def worker(cluster: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster["workerGroupSpecs"]
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def serve_config(resources: Resources) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(resources["RayService"]["spec"]["serveConfigV2"])
    return config


def test_it_takes_the_deployments_place(resources: Resources) -> None:
    assert resources.keys() == {"RayService", "Service", "NetworkPolicy", "PodDisruptionBudget"}


def test_it_is_what_the_operator_and_ray_take(resources: Resources) -> None:
    jsonschema_rs.validate(SCHEMA, resources["RayService"])
    jsonschema_rs.validate({"$ref": "#/$defs/serveConfig", "$defs": SCHEMA["$defs"]}, serve_config(resources))


def test_its_pods_and_its_service_are_what_kubernetes_takes(resources: Resources, tmp_path: Path) -> None:
    spec = resources["RayService"]["spec"]
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", **group["template"], "metadata": {"name": "pod"}}
        for group in (spec["rayClusterConfig"]["headGroupSpec"], workers)
    ]
    service = {"apiVersion": "v1", "kind": "Service", **spec["serveService"]}
    (tmp_path / "pods.yaml").write_text(yaml.safe_dump_all([*pods, service]))
    done = subprocess.run([KUBERNETES_VALIDATE, "--strict", tmp_path / "pods.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("passed")) == (0, 3), done.stdout + done.stderr


def test_it_runs_what_the_file_for_ray_without_kubernetes_runs(resources: Resources) -> None:
    (ours,) = serve_config(resources)["applications"]
    (plain,) = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())["applications"]
    assert (ours["name"], ours["import_path"]) == (plain["name"], plain["import_path"])
    assert ours["deployments"][0]["name"] == plain["deployments"][0]["name"]


def test_arguments_are_settings_without_secrets() -> None:
    (application,) = serve_config(render(RAY, "model=gpt2", "settings.max_num_seqs=32"))["applications"]
    assert application["args"] == {
        "max_num_seqs": "32",
        "metrics_port": "8001",
        "model": "gpt2",
        "store": "s3://bucket/path",
    }
    assert application["args"].keys() <= Settings.model_fields.keys()


def test_a_pod_has_room_for_one_replica_and_the_head_for_none(resources: Resources, cluster: dict[str, Any]) -> None:
    (deployment,) = serve_config(resources)["applications"][0]["deployments"]
    (workers,) = cluster["workerGroupSpecs"]
    assert deployment["max_replicas_per_node"] == 1
    assert deployment["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 1}
    assert workers["rayStartParams"]["num-cpus"] == "2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    scaling = deployment["autoscaling_config"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (scaling["min_replicas"], scaling["max_replicas"])


def test_nobody_without_a_token_reaches_ray(
    cluster: dict[str, Any], head: dict[str, Any], worker: dict[str, Any]
) -> None:
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    for pod in (head, worker):
        assert environment(pod)["RAY_AUTH_MODE"] == "token"
        assert environment(pod)["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": "ray-token", "key": "auth_token"}}
        assert environment(pod)["RAY_USAGE_STATS_ENABLED"] == "0"


def test_every_pod_has_the_rights_and_secrets_of_a_server(head: dict[str, Any], worker: dict[str, Any]) -> None:
    deployment = render(RAY, "ray.enabled=false")["Deployment"]["spec"]["template"]["spec"]
    for pod in (head, worker):
        assert pod["securityContext"] == deployment["securityContext"]
        assert pod["enableServiceLinks"] is False
        (container,), (server,) = pod["containers"], deployment["containers"]
        assert container["securityContext"] == server["securityContext"]
        assert container["envFrom"] == server["envFrom"]
        assert environment(pod)["POLYPREFIX_REGISTRY"] == environment(deployment)["POLYPREFIX_REGISTRY"]
        assert environment(pod)["OMP_NUM_THREADS"] == environment(deployment)["OMP_NUM_THREADS"]
        assert environment(pod)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert worker["automountServiceAccountToken"] is False


def test_the_operator_and_the_pods_themselves_reach_more_than_the_server(resources: Resources) -> None:
    policy = resources["NetworkPolicy"]["spec"]
    everyone, metrics, themselves, operator = policy["ingress"]
    assert everyone == {"ports": [{"port": "serve"}]}
    assert metrics["ports"] == [{"port": "metrics"}]
    assert themselves == {"from": [{"podSelector": policy["podSelector"]}]}
    assert operator["ports"] == [{"port": "dashboard"}, {"port": "serve"}]
    assert [each["podSelector"]["matchLabels"] for each in operator["from"]] == [
        {"app.kubernetes.io/name": "kuberay-operator"}
    ]
    assert policy["egress"][0] == {"to": themselves["from"]}
    assert operator not in render(RAY, "networkPolicy.operatorFrom=null")["NetworkPolicy"]["spec"]["ingress"]


def test_the_metrics_of_each_replica_are_found(resources: Resources, cluster: dict[str, Any]) -> None:
    selector = resources["Service"]["spec"]["selector"]
    assert selector.items() <= cluster["workerGroupSpecs"][0]["template"]["metadata"]["labels"].items()
    assert not selector.items() <= cluster["headGroupSpec"]["template"]["metadata"]["labels"].items()
    assert [port["name"] for port in resources["Service"]["spec"]["ports"]] == ["metrics"]
    assert resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selector


def test_whoever_installs_it_is_told_how_to_get_a_key() -> None:
    assert "--store s3://bucket/path" in notes(RAY)
