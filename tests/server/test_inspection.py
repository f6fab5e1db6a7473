"""Damage in stored files is found while the server runs."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from prefix_store.errors import Quarantined
from prefix_store.store import PrefixStore
from server.inspection import store_inspected
from tests.prefix_store.support import BACKBONE, native_file, publish


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        self.has_told = asyncio.Event()

    def error(self, event: str, **facts: object) -> None:
        self.told.append((event, facts))
        self.has_told.set()

    warning = error


def test_a_file_that_changed_on_the_disk_is_found_and_served_no_more(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path, backbone=BACKBONE)
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    (file,) = [path for path in (tmp_path / "default").iterdir() if path.read_bytes() == native_file(1)]
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")

    async def inspect() -> Log:
        log = Log()
        async with store_inspected(store, log, Gauge("damaged", "", registry=None)):  # type: ignore[arg-type]
            await asyncio.wait_for(log.has_told.wait(), 10)
        return log

    ((event, facts),) = asyncio.run(inspect()).told
    assert (event, facts["where"]) == ("damaged", "default/poet/1")
    with pytest.raises(Quarantined):
        store.get("default", "poet")
    assert store.get("default", "clerk").version == 1
    store.close()


def test_a_missing_file_is_told_at_the_start(tmp_path: Path) -> None:
    store = PrefixStore(tmp_path, backbone=BACKBONE)
    publish(store, "poet", seed=1)
    next((tmp_path / "default").iterdir()).unlink()

    registry = CollectorRegistry()
    num_damaged = Gauge("damaged", "", registry=registry)

    async def start() -> Log:
        log = Log()
        async with store_inspected(store, log, num_damaged):  # type: ignore[arg-type]
            await asyncio.wait_for(log.has_told.wait(), 10)
        return log

    assert "missing" in str(asyncio.run(start()).told[0])
    assert registry.get_sample_value("damaged") == 1
    store.close()
