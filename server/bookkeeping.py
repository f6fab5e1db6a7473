"""Writes down, every few seconds, what was counted in memory: usage, and when keys were last used.

Knows the store's ledgers and a clock. Knows nothing of what is counted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from structlog.typing import FilteringBoundLogger

from prefix_store.errors import StoreError
from prefix_store.store import PrefixStore

INTERVAL = 5.0  # seconds of counts that a killed process loses at most


@contextlib.asynccontextmanager
async def books_kept(store: PrefixStore, log: FilteringBoundLogger) -> AsyncIterator[None]:
    """Write as long as the block runs, and once more at its end."""
    writing = asyncio.create_task(_write_for_ever(store, log))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await asyncio.to_thread(_write, store, log)


async def _write_for_ever(store: PrefixStore, log: FilteringBoundLogger) -> None:
    while True:
        await asyncio.sleep(INTERVAL)
        await asyncio.to_thread(_write, store, log)


def _write(store: PrefixStore, log: FilteringBoundLogger) -> None:
    """What cannot be written now is kept for the next time."""
    for flush in (store.usage.flush, store.tenants.flush_last_used):
        try:
            flush()
        except StoreError as error:
            log.warning("books_not_written", reason=str(error))
