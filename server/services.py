"""What every route needs, built once and handed around whole. Knows no route."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from prefix_store.store import PrefixStore
from prefix_store.tasks import Served
from prefix_store.tenants import Principal
from server.account_metrics import AccountMetrics
from server.async_engine import AsyncEngine
from server.engine_messages import BackboneFacts
from server.errors import DeadlinePassed, Unavailable
from server.failure_watch import FailureWatch
from server.file_room import FileRoom
from server.grammars import Grammars
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.live import Live
from server.metrics import Metrics
from server.settings import Settings
from server.text import Tokenizer

P = ParamSpec("P")
T = TypeVar("T")

PING_SECONDS = 1.0  # a probe gives up after two


MAX_LOADS = 32  # threads that read prefixes


class Loads:
    """Reads the prefixes of tasks that are not in memory, in threads of its own: where the store is slow, these wait
    and nothing else does."""

    def __init__(self, store: PrefixStore, max_wait: float) -> None:
        self._store = store
        self._max_wait = max_wait
        self._threads = ThreadPoolExecutor(MAX_LOADS, "load")

    async def get(self, tenant: str, task_id: str, draw: float) -> Served:
        """Raises as `PrefixStore.get` does, and `DeadlinePassed`; what is being read then is there for the next."""
        loading = asyncio.get_running_loop().run_in_executor(self._threads, self._store.get, tenant, task_id, draw)
        try:
            return await asyncio.wait_for(loading, self._max_wait)
        except TimeoutError:
            raise DeadlinePassed(f"the task was not read from the store within {self._max_wait:g} s") from None

    def close(self) -> None:
        """Wait for none of them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class OnePing:
    """A look at the store in a thread, one at a time: of those that hang, each would take one of the pool's few."""

    def __init__(self) -> None:
        self._under_way: asyncio.Task[None] | None = None

    def of(self, store: PrefixStore) -> asyncio.Task[None]:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(asyncio.to_thread(store.ping))
            self._under_way.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody waits
        return self._under_way


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    backbone: BackboneFacts
    engine: AsyncEngine
    store: PrefixStore
    loads: Loads
    tokenizer: Tokenizer
    grammars: Grammars
    metrics: Metrics
    accounts: AccountMetrics
    live: Live
    lifecycle: Lifecycle
    limits: Limits
    file_room: FileRoom
    failures: FailureWatch
    log: FilteringBoundLogger
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ping: OnePing = field(default_factory=OnePing)

    async def write(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of the store's writes in a thread.

        They wait for each other anyway. Here they do it without a thread each: the pool has few, and prompts and first
        uses of tasks must not wait for them behind somebody's uploads.
        """
        async with self._writing:
            return await asyncio.to_thread(change, *args, **kwargs)

    async def read(self, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one of the store's reads of a whole file, one at a time: before it takes of the room for files it is in
        memory already."""
        async with self._reading:
            return await asyncio.to_thread(look, *args, **kwargs)

    async def ping_store(self) -> None:
        """Raises `StoreUnavailable`, and TimeoutError where the store says nothing for a second."""
        await asyncio.wait_for(asyncio.shield(self._ping.of(self.store)), PING_SECONDS)

    def check_open(self, principal: Principal) -> None:
        """Raise `Unavailable` or `Overloaded` where no new work is taken; before any work is done for it."""
        if self.lifecycle.is_closed:
            raise Unavailable("the server is draining; ask another one")
        self.engine.check_room(principal.tenant, max_queued=principal.limits.max_queued)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
