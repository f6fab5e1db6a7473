"""Two replicas of Ray Serve over one bucket and one database: who is replaced or killed takes no answer and no upload.

Callers keep asking through the proxy while it happens. A row's bits depend on no other's here (`--deterministic`), so
every answer is known beforehand.
"""

# ruff: noqa: F401, F811 -- fixtures of the store's tests, imported by name
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.conftest import report
from tests.prefix_store.conftest import fleet, new_fleet, postgresql_server, seaweedfs_server
from tests.prefix_store.homes import FleetHome
from tests.prefix_store.servers import PostgreSQL, SeaweedFS
from tests.server.ray_cluster import Cluster, ray_cluster
from tests.torture.processes import prefix_file

pytestmark = pytest.mark.fleet
pytest.importorskip("ray", reason="needs Ray (make test-fleet installs it)")

NAMES = ("e2e", "events_acts", "e2e_fields")
NUM_CALLERS = 6
SECONDS = 8.0  # of asking before, between and after what is done to the replicas
SECONDS_BETWEEN_UPLOADS = 0.5
KNOWN_FOR = 2.0  # seconds for which a replica may go by what it knew of a task that was replaced elsewhere


@pytest.fixture
def cluster(fleet: FleetHome, seaweedfs_server: SeaweedFS, tmp_path: Path) -> Iterator[Cluster]:
    environment = {
        **seaweedfs_server.environment,
        "POLYPREFIX_STORE": fleet.bucket,
        "POLYPREFIX_REGISTRY": fleet.registry,
        "POLYPREFIX_NO_AUTH": "true",
        "POLYPREFIX_DTYPE": "float32",
        "POLYPREFIX_DETERMINISTIC": "true",
    }
    with ray_cluster(tmp_path, environment) as started:
        yield started


def generate(http: httpx.Client, task_id: str, num_tokens: int = 24) -> httpx.Response:
    parameters = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    body = {"task_id": task_id, "inputs": "name : The Punter | food : Indian", "parameters": parameters}
    return http.post("/generate", json=body)


def upload(http: httpx.Client, task_id: str, name: str) -> bool:
    """Whether it was acknowledged."""
    try:
        return http.put(f"/tasks/{task_id}", content=prefix_file(name)).is_success
    except httpx.TransportError:
        return False


@contextmanager
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield http


@dataclass(frozen=True)
class Failure:
    began_at: float
    ended_at: float
    what: str


@dataclass
class Traffic:
    """Callers and one uploader. `texts` is what a prefix answers, by name; `uploaded` the acknowledged, by task."""

    url: str
    texts: dict[str, str]
    uploaded: dict[str, str] = field(default_factory=dict)
    num_answers: int = 0
    wrong: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(NUM_CALLERS + 1) as pool:
            callers = [pool.submit(self._keep_asking) for _ in range(NUM_CALLERS)]
            uploader = pool.submit(self._keep_uploading)
            try:
                yield
            finally:
                self._is_over.set()
            for each in (*callers, uploader):
                each.result()

    def ask(self, http: httpx.Client, task_id: str, name: str) -> None:
        began_at = time.monotonic()
        try:
            answer = generate(http, task_id)
        except httpx.TransportError as error:
            self.failures.append(Failure(began_at, time.monotonic(), repr(error)))
            return
        if not answer.is_success:
            self.failures.append(Failure(began_at, time.monotonic(), f"{answer.status_code} {answer.text[:200]}"))
            return
        self.num_answers += 1
        if answer.json()["generated_text"] != self.texts[name]:
            self.wrong.append(f"{task_id}: {answer.text}")

    def _keep_asking(self) -> None:
        with client(self.url) as http:
            for name in cycle(NAMES):
                if self._is_over.is_set():
                    return
                self.ask(http, name, name)

    def _keep_uploading(self) -> None:
        """New tasks, each asked for as soon as it is acknowledged, by whichever replica."""
        with client(self.url) as http:
            for number, name in zip(count(), cycle(NAMES), strict=False):
                if self._is_over.wait(SECONDS_BETWEEN_UPLOADS):
                    return
                task_id = f"task-{number}"
                if upload(http, task_id, name):
                    self.uploaded[task_id] = name
                    self.ask(http, task_id, name)


def test_callers_lose_nothing_when_replicas_are_replaced_and_only_what_is_in_flight_when_one_is_killed(
    cluster: Cluster, report: dict[str, float]
) -> None:
    cluster.deploy()
    one, other = cluster.replica_urls
    with client(one) as http, client(other) as http_of_other:
        assert upload(http, "e2e", "e2e")
        assert generate(http_of_other, "e2e").is_success  # the next request, on the other replica
        for name in NAMES:
            assert upload(http, name, name)
        texts = {name: generate(http, name).json()["generated_text"] for name in NAMES}
    assert len(set(texts.values())) == len(NAMES)

    traffic = Traffic(cluster.url, texts)
    with traffic.running():
        time.sleep(SECONDS)
        old = cluster.replica_pids
        cluster.deploy(max_queued_per_slot="5")
        time.sleep(SECONDS)
        assert not set(old) & set(cluster.replica_pids)
        assert traffic.failures == []
        num_before, victim = traffic.num_answers, psutil.Process(cluster.replica_pids[0])
        victim.kill()
        victim.wait()  # while it ends, the kernel still takes connections for it
        gone_at = time.monotonic()
        cluster.wait()
        time.sleep(SECONDS)
    assert traffic.num_answers > num_before

    assert [each for each in traffic.failures if each.began_at > gone_at] == []
    assert len(traffic.failures) <= NUM_CALLERS + 1  # what was in flight
    lost = []
    for url in cluster.replica_urls:
        with client(url) as http:
            for task_id, name in traffic.uploaded.items():
                answer = generate(http, task_id)
                if not (answer.is_success and answer.json()["generated_text"] == texts[name]):
                    lost.append((url, task_id, answer.text))
    report["wrong_answers"], report["acknowledged_lost"] = len(traffic.wrong), len(lost)
    assert (traffic.wrong, lost) == ([], [])


def test_a_replica_whose_engine_has_ended_is_replaced(cluster: Cluster) -> None:
    cluster.deploy()
    old = cluster.replica_pids
    (engine,) = psutil.Process(old[0]).children()
    engine.kill()
    until = time.monotonic() + 60
    while old[0] in cluster.replica_pids:
        assert time.monotonic() < until
        time.sleep(0.2)
    cluster.wait()
    assert len(cluster.replica_pids) == len(old)
    with client(cluster.url) as http:
        assert upload(http, "e2e", "e2e")
        assert generate(http, "e2e").is_success
