"""The image as `make image-test` has built it, run for real."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.deploy.containers import Container, container, podman
from tests.deploy.expressions import ROOT
from tests.deploy.waiting import READY_SECONDS, wait_until_ready

pytestmark = [pytest.mark.image]
IMAGE = os.environ.get("IMAGE", "localhost/polyprefix:test")
NO_NETWORK = "--network=none"
MEMORY_LIMIT = 1 << 30
PREFIX = (ROOT / "polyprefix/pocket/prefixes/e2e.safetensors").read_bytes()


@pytest.fixture(scope="module")
def served(report: dict[str, float]) -> Iterator[Container]:
    """The embedded default, without a network and with a limit of memory."""
    report["image_mb"] = round(int(podman("image", "inspect", "--format={{.Size}}", IMAGE)) / 1e6)
    started_at = time.monotonic()
    with container(IMAGE, NO_NETWORK, f"--memory={MEMORY_LIMIT}") as served:
        served.ask("GET", "/ready", wait=READY_SECONDS)
        report["image_ready_seconds"] = round(time.monotonic() - started_at, 1)
        yield served


def test_it_serves_the_embedded_model_without_a_network(served: Container) -> None:
    served.ask("PUT", "/tasks/e2e", PREFIX)
    answer = served.generate(task_id="e2e", inputs="name : Blue Spice", parameters={"max_new_tokens": 8})
    assert answer["task_id"] == "e2e"
    assert answer["generated_text"]


def test_its_user_is_not_root_and_writes_to_its_volumes_alone(served: Container) -> None:
    assert served.run("id", "-u").strip() == b"10001"
    assert served.fails("touch", "/opt/polyprefix/x")
    assert served.fails("touch", "/x")
    served.run("touch", "/store/x", "/models/x")


def test_it_keeps_to_its_limit_of_memory(served: Container, report: dict[str, float]) -> None:
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    (limit,) = [int(served.run("cat", path)) for path in limits if not served.fails("test", "-e", path)]
    assert limit == MEMORY_LIMIT
    metrics = served.ask("GET", "/metrics").decode()
    resident = re.findall(r"^(?:polyprefix_engine_)?process_resident_memory_bytes (\S+)$", metrics, re.MULTILINE)
    assert len(resident) == 2
    report["image_memory_mb"] = round(sum(map(float, resident)) / 1e6)
    assert sum(map(float, resident)) < MEMORY_LIMIT
    assert podman("inspect", "--format={{.State.OOMKilled}}", served.id).strip() == b"false"


def test_its_own_health_check_passes(served: Container) -> None:
    check = json.loads(podman("image", "inspect", "--format={{json .HealthCheck.Test}}", IMAGE))
    assert check[0] == "CMD"
    served.run(*check[1:])


def test_it_has_the_compiled_kernels_and_neither_pip_nor_a_compiler(served: Container) -> None:
    served.run("python", "-c", "import torch, batching.kernels as k; assert k.can_attend(torch.zeros(1, 64))")
    assert served.fails("python", "-m", "pip")
    assert served.fails("g++", "--version")


def test_its_labels_say_what_it_is() -> None:
    labels = json.loads(podman("image", "inspect", "--format={{json .Labels}}", IMAGE))
    facts = {name.rpartition(".")[2]: text for name, text in labels.items() if "opencontainers" in name}
    assert {"title", "description", "licenses", "version"} <= facts.keys()
    assert facts["title"] == "Polyprefix"


def test_uploads_survive_the_replacement_of_the_container() -> None:
    volume = podman("volume", "create").decode().strip()
    try:
        for is_first in (True, False):
            with container(IMAGE, NO_NETWORK, f"--volume={volume}:/store") as served:
                served.ask("GET", "/ready", wait=READY_SECONDS)
                if is_first:
                    served.ask("PUT", "/tasks/mine", PREFIX)
                assert served.ask("GET", "/tasks/mine/prefix") == PREFIX
                assert served.stop() == 0
    finally:
        podman("volume", "rm", volume)


def test_a_first_key_is_made_once_where_the_container_is_told_so() -> None:
    """As compose.yaml and the chart do, which leave --no-auth out."""
    with container(IMAGE, NO_NETWORK, "--env=POLYPREFIX_FIRST_KEY_FILE=/store/first-key", command=("serve",)) as served:
        served.ask("GET", "/ready", wait=READY_SECONDS)
        secret = served.run("cat", "/store/first-key").decode().strip()
        assert secret.startswith("pp_")
        served.run("polyprefix", "admin", "tenant", "add", "acme", "--url=http://127.0.0.1:8000", f"--api-key={secret}")
        assert served.fails("polyprefix", "admin", "tenant", "list", "--url=http://127.0.0.1:8000")


def test_sigterm_lets_streams_that_have_begun_come_to_their_ends() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # The streams have half a minute, also where others use the cores: two threads would wait for each other.
    settings = (f"--env=POLYPREFIX_PORT={port}", "--env=POLYPREFIX_HOST=127.0.0.1", "--env=OMP_NUM_THREADS=1")
    num_streams, num_tokens = 16, 400
    body = {"inputs": "once", "parameters": {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}}
    with (
        container(IMAGE, "--network=host", *settings, command=("serve",)) as served,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
        ThreadPoolExecutor(num_streams) as pool,
    ):
        wait_until_ready(http)

        def stream() -> int:
            with http.stream("POST", "/generate_stream", json=body) as answer:
                return sum(line.startswith("data:") and '"token"' in line for line in answer.iter_lines())

        streams = [pool.submit(stream) for _ in range(num_streams)]
        while "polyprefix_requests_running 16.0" not in http.get("/metrics").text:
            time.sleep(0.01)
        assert served.stop() == 0
        assert [stream.result() for stream in streams] == [num_tokens] * num_streams
