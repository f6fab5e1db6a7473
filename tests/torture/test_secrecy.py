"""Whether a task is another tenant's or nobody's cannot be told by how long its 404 takes.

`pytest -m torture tests/torture/test_secrecy.py`; half a minute.
"""

import time
from pathlib import Path
from statistics import median

import httpx
import pytest

from prefix_store.tenants import Tenant
from tests.torture.processes import admit, launcher, upload

pytestmark = [pytest.mark.torture, pytest.mark.alone, pytest.mark.timeout(900)]

NUM_ASKED = 3_000
MOST = 1.05  # of one median over the other


def seconds_of(http: httpx.Client, method: str, task_id: str) -> float:
    body = {"inputs": "name : Cotto", "task_id": task_id}
    began_at = time.perf_counter()
    answer = http.get(f"/tasks/{task_id}") if method == "GET" else http.post("/generate", json=body)
    seconds = time.perf_counter() - began_at
    assert answer.status_code == 404
    return seconds


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_anothers_task_is_refused_as_fast_as_nobodys(tmp_path: Path, report: dict[str, float], method: str) -> None:
    keys = admit(tmp_path, Tenant(name="acme"), Tenant(name="globex"))
    with launcher(tmp_path) as launch:
        server = launch()
        upload(server, keys["acme"], ["hidden"])
        with server.client(keys["globex"]) as http:
            seconds: dict[str, list[float]] = {"hidden": [], "nobody": []}  # of one length, and in turns
            for _ in range(NUM_ASKED):
                for task_id, found in seconds.items():
                    found.append(seconds_of(http, method, task_id))
    ratio = median(seconds["hidden"]) / median(seconds["nobody"])
    report[f"foreign_vs_unknown_{method.lower()}"] = round(ratio, 3)
    assert 1 / MOST <= ratio <= MOST
