"""The whole server, told to end: what it began is finished.

`pytest -m torture tests/torture/test_drains.py`; a quarter of an hour, most of it starting servers.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.load import Connection, generate, request
from tests.torture.processes import ServerProcess, launcher, prefix_file, upload
from tests.torture.test_store import Report, count

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]

NUM_ASKING = 8


async def drain_idle(server: ServerProcess) -> list[str]:
    server.popen.send_signal(signal.SIGTERM)
    return []


async def drain_loaded(server: ServerProcess) -> list[str]:
    """Half of the requests are streams; the last one's first token tells that all of them run."""
    has_begun = asyncio.Event()
    connections = [await Connection.to(server.port) for _ in range(NUM_ASKING - 1)]
    connections.append(await Connection.to(server.port, lambda data: has_begun.set()))
    asking = [
        asyncio.create_task(connection.ask(generate("asked", num_new_tokens=128, stream=i % 2 == 1)))
        for i, connection in enumerate(connections)
    ]
    await has_begun.wait()
    server.popen.send_signal(signal.SIGTERM)
    statuses = [answer.status for answer in await asyncio.gather(*asking)]
    for connection in connections:
        connection.close()
    return [] if statuses == [200] * NUM_ASKING else [f"what ran was answered {statuses}"]


async def drain_uploading(server: ServerProcess) -> list[str]:
    """The second half of the file comes when the server is draining already."""
    file = prefix_file("e2e")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request("PUT", "/tasks/asked", file)[: -len(file) // 2])
    await asyncio.sleep(0.2)  # it has been read by then
    server.popen.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.05)
    writer.write(file[-len(file) // 2 :])
    status = (await reader.read(12)).decode()
    writer.close()
    await writer.wait_closed()
    return [] if status.endswith("200") else [f"the upload in flight was answered {status!r}"]


@pytest.mark.parametrize(("drain", "num_drains"), [(drain_idle, 34), (drain_loaded, 33), (drain_uploading, 33)])
def test_a_server_that_is_told_to_end_finishes_what_it_began(
    tmp_path: Path, report: Report, drain: Callable[[ServerProcess], Awaitable[list[str]]], num_drains: int
) -> None:
    broken = []
    with launcher(tmp_path) as launch:
        for _ in range(num_drains):
            server = launch()
            upload(server, None, ["asked"])  # also tells that the store is whole
            broken += asyncio.run(drain(server))
            if (status := server.popen.wait(60)) != 0:
                broken.append(f"it ended with {status}")
    count(report, drains=num_drains, drains_broken=len(broken))
    assert broken == []
