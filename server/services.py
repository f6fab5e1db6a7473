"""What every route needs, built once and handed around whole. Knows no route."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from prefix_store.store import PrefixStore
from prefix_store.tenants import Principal
from server.account_metrics import AccountMetrics
from server.async_engine import AsyncEngine
from server.engine_messages import BackboneFacts
from server.errors import Unavailable
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
