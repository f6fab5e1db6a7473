"""What the engine has just done, for whoever watches: its last steps with their rows, and who waits.

Knows steps, rows and whose they are. Knows nothing of who may see what, or of HTTP. Used on the event loop. A step
costs one small record, watched or not.
"""

import asyncio
import contextlib
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from batching.types import StepStats
from server.engine_messages import Pulse
from server.errors import RateLimited

MAX_STEPS = 240
MAX_FIRST_TOKENS = 256
MAX_WATCHERS_OF_TENANT = 8


@dataclass(slots=True, eq=False)
class Owner:
    """Whose an open row is; one that has run has left the queue."""

    tenant: str
    task_name: str
    has_run: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LiveStep:
    """A forward pass; `owners` are its rows', in their order, None where nobody's: a trial of an upload, say.

    `at` is when the event loop heard of it, in monotonic seconds.
    """

    at: float
    stats: StepStats
    owners: tuple[Owner | None, ...]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """How many seconds after its request it came."""

    tenant: str
    seconds: float


class Live:
    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.server = secrets.token_hex(8)
        """Tells this run of the server from others, whose steps are numbered alike."""
        self.steps: deque[LiveStep] = deque(maxlen=MAX_STEPS)
        self.first_tokens: deque[FirstToken] = deque(maxlen=MAX_FIRST_TOKENS)
        self._owners: dict[str, Owner] = {}  # by request id
        self._watchers: dict[asyncio.Event, str] = {}  # with their tenants

    @contextlib.contextmanager
    def owned(self, request_ids: Iterable[str], tenant: str, task_name: str) -> Iterator[None]:
        """Say whose these requests are, for as long as the block runs."""
        owners = {request_id: Owner(tenant, task_name) for request_id in request_ids}
        self._owners |= owners
        try:
            yield
        finally:
            for request_id in owners:
                del self._owners[request_id]

    def observe_pulse(self, pulse: Pulse) -> None:
        if pulse.stats is None:
            return
        owners = tuple(self._owners.get(row.request_id) for row in pulse.stats.rows)
        for owner in owners:
            if owner is not None:
                owner.has_run = True
        self.steps.append(LiveStep(time.monotonic(), pulse.stats, owners))
        for changed in self._watchers:
            changed.set()

    def observe_first_token(self, tenant: str, seconds: float) -> None:
        self.first_tokens.append(FirstToken(tenant, seconds))

    def num_waiting(self) -> Counter[str]:
        """How many requests of each tenant no step has held yet."""
        return Counter(owner.tenant for owner in self._owners.values() if not owner.has_run)

    @contextlib.contextmanager
    def watched(self, tenant: str) -> Iterator[asyncio.Event]:
        """An event that each step sets, for as long as the block runs. Raises `RateLimited`."""
        if Counter(self._watchers.values())[tenant] >= MAX_WATCHERS_OF_TENANT:
            raise RateLimited(f"this tenant watches {MAX_WATCHERS_OF_TENANT} times already", 1.0)
        changed = asyncio.Event()
        self._watchers[changed] = tenant
        try:
            yield changed
        finally:
            del self._watchers[changed]
