"""Looks for damage in the store while the server runs: names and sizes at first, then every file's hash, slowly.

Nothing waits for it, so that a server with many tasks is ready as soon as one with few: what is read is checked anyway.
Knows the store's upkeep and a clock. A damaged version is taken out of service by the store itself, one that
cannot be read is not; here both are told.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from prometheus_client import Gauge
from structlog.typing import FilteringBoundLogger

from prefix_store.errors import StoreError
from prefix_store.store import PrefixStore
from prefix_store.upkeep import Damage

PAUSE = 0.2  # seconds between two versions: reading files must not slow first uses down
ROUND_INTERVAL = 3600.0  # seconds between two rounds

END = object()


@contextlib.asynccontextmanager
async def store_inspected(store: PrefixStore, log: FilteringBoundLogger, num_damaged: Gauge) -> AsyncIterator[None]:
    """Scan, then read file after file, as long as the block runs. `num_damaged`: what the last look found."""
    inspecting = asyncio.create_task(_inspect_for_ever(store, log, num_damaged))
    try:
        yield
    finally:
        inspecting.cancel()
        await asyncio.gather(inspecting, return_exceptions=True)


async def _inspect_for_ever(store: PrefixStore, log: FilteringBoundLogger, num_damaged: Gauge) -> None:
    has_scanned = False
    while True:
        num_found = 0
        try:
            if not has_scanned:
                # Names, sizes and records, which takes a second for ten thousand tasks.
                tell_all(log, num_damaged, await asyncio.to_thread(store.upkeep.scan))
                has_scanned = True
            found = store.upkeep.verify_each()
            while (damage := await asyncio.to_thread(next, found, END)) is not END:
                if isinstance(damage, Damage):
                    _tell(damage, log)
                    num_found += 1
                await asyncio.sleep(PAUSE)
            num_damaged.set(num_found)
        except StoreError as error:
            log.warning("not_inspected", reason=str(error))
        await asyncio.sleep(ROUND_INTERVAL)


def tell_all(log: FilteringBoundLogger, num_damaged: Gauge, found: Sequence[Damage]) -> None:
    """What a look at the whole store has found."""
    for damage in found:
        _tell(damage, log)
    num_damaged.set(len(found))


def _tell(damage: Damage, log: FilteringBoundLogger) -> None:
    log.error("damaged", where=damage.where, what=damage.what)
