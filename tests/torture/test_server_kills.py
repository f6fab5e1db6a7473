"""The whole server, killed under load: what it acknowledged is there.

`pytest -m torture tests/torture/test_server_kills.py`; five minutes, most of them starting servers.
"""

import asyncio
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.load import generate, keep_asking
from prefix_store.tenants import Tenant, TenantLimits
from tests.torture.processes import ServerProcess, admit, launcher, upload
from tests.torture.writers import Writer

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

NUM_KILLS = 25
NUM_WRITERS = 4
NUM_ASKING = 8

MANY_UPLOADS = TenantLimits(uploads_per_minute=10**6, upload_burst=10**6)


async def ask_until_killed(server: ServerProcess, load: bytes) -> None:
    try:
        await keep_asking(server.port, [load], NUM_ASKING, seconds=60)
    except* ConnectionError:
        pass


def test_a_killed_server_serves_all_that_it_acknowledged(tmp_path: Path, report: dict[str, float]) -> None:
    keys = admit(tmp_path, Tenant(name="acme", limits=MANY_UPLOADS), Tenant(name="globex", limits=MANY_UPLOADS))
    writers = [Writer(f"task-{i}", key, seed=i) for i, key in zip(range(NUM_WRITERS), cycle(keys.values()))]
    chance = random.Random(5)
    num_acknowledged, lost = 0, []
    with launcher(tmp_path) as launch, ThreadPoolExecutor(NUM_WRITERS + 1) as pool:
        server = launch()
        upload(server, keys["acme"], ["asked"])
        load = generate("asked", num_new_tokens=32, key=keys["acme"])
        for _ in range(NUM_KILLS):
            asking = pool.submit(asyncio.run, ask_until_killed(server, load))
            writing = [pool.submit(writer.write_until_killed, server) for writer in writers]
            time.sleep(chance.uniform(0.3, 2.0))
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
            asking.result()
            num_acknowledged += sum(each.result() for each in writing)
            server = launch()
            lost += [problem for writer in writers for problem in writer.find_lost(server)]
        assert server.end() == 0
    report["server_kills"] = NUM_KILLS
    report["server_acknowledged"] = num_acknowledged
    report["server_acknowledged_lost"] = len(lost)
    assert lost == []
