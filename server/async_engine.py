"""The border between the event loop and the engine: two threads and two queues.

The engine thread owns the engine: it takes what came into the inbox, steps, and wakes the event loop once per step. The
event loop puts what the step did into each request's mailbox. Knows nothing of text or HTTP.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from batching.types import Abort, Compiled, RequestError, StepStats
from server.errors import ServerError, Unavailable
from server.mailboxes import Inbox, Letter, Mailbox, Work
from server.room import Room

T = TypeVar("T")

LOOK_AFTER = 0.01  # seconds past the moment of stalling, so that a look at that moment cannot come too early


class EngineLike(Protocol):
    """What is asked of an engine; `batching.engine.Engine` is one. Only `check` may be called from another thread."""

    max_num_seqs: int
    max_model_len: int
    last_step: StepStats | None

    @property
    def has_work(self) -> bool: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_free_slots(self) -> int: ...
    def check(self, request: Work) -> None: ...
    def add_request(self, request: Work) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def step(self) -> list[Letter]: ...


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one step did: letters for the mailboxes, requests that were refused, and how things stood after it.

    `stats` is None where the step ran no forward pass.
    """

    letters: tuple[Letter, ...]
    refusals: tuple[tuple[str, RequestError], ...]
    stats: StepStats | None
    num_waiting: int
    num_running: int
    num_free_slots: int


class AsyncEngine:
    """The engine, seen from the event loop. Made and used there; `_run` and what it calls are the other thread's."""

    def __init__(
        self,
        engine: EngineLike,
        *,
        max_open_rows: int,
        stall_timeout: float,
        on_pulse: Callable[[Pulse], None],
        on_death: Callable[[str], None],
    ) -> None:
        """`on_pulse` is called on the event loop after each step, `on_death` once, when the engine cannot go on."""
        self._engine = engine
        self.room = Room(engine.max_num_seqs, max_open_rows)
        self._stall_timeout = stall_timeout
        self._on_pulse = on_pulse
        self._on_death = on_death
        self._inbox = Inbox()
        self._mailboxes: dict[str, Mailbox] = {}
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._watch: asyncio.TimerHandle | None = None
        self._death: str | None = None
        self.step_started_at: float | None = None

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self._engine.max_num_seqs

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the engine thread after its current step, and every open request with an error."""
        self.fail_all(Unavailable("the server is shutting down"))
        if self._watch is not None:
            self._watch.cancel()
        if self._death is None:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join, self._stall_timeout)

    # ------------------------------------------------------------ requests, on the event loop

    def check_room(self, tenant: str, num_rows: int = 1, max_queued: int | None = None) -> None:
        """Raise as `Room.check` where there is no room for the tenant, `Unavailable` where the engine is dead."""
        if self._death is not None:
            raise Unavailable(self._death)
        self.room.check(tenant, num_rows, max_queued)

    def check(self, work: Work) -> None:
        """Raise `RequestError` if this can never be served."""
        self._engine.check(work)

    @contextlib.contextmanager
    def submitted(self, *works: Work, num_rows: int = 1, max_queued: int | None = None) -> Iterator[Mailbox]:
        """Queue one tenant's works, all at once, for as long as the block runs. Their letters come into one mailbox.

        Leaving the block, in whatever way, aborts what is not finished. `num_rows` is how many slots each work will
        take, `max_queued` how many rows of the tenant may wait. Raises as `check_room`.
        """
        tenant = works[0].tenant
        self.check_room(tenant, num_rows * len(works), max_queued)
        mailbox = Mailbox(tenant, num_rows)
        for work in works:
            self._mailboxes[work.request_id] = mailbox
            self.room.take(tenant, num_rows)
        self._inbox.put(*works)
        self._watch_over()
        try:
            yield mailbox
        finally:
            self.abort(*(work.request_id for work in works))

    def abort(self, *request_ids: str) -> None:
        """Free what these works hold; one that has ended is ignored."""
        open_ids = [request_id for request_id in request_ids if self._forget(request_id)]
        if open_ids:
            self._inbox.put(*map(Abort, open_ids))
            self._watch_over()

    def fail_all(self, error: ServerError) -> None:
        """End every open request with `error`; their readers then abort them."""
        for mailbox in self._mailboxes.values():
            mailbox.fail(error)

    def _forget(self, request_id: str) -> bool:
        """False if it was forgotten before: its last letter has come."""
        mailbox = self._mailboxes.pop(request_id, None)
        if mailbox is not None:
            self.room.give_back(mailbox.tenant, mailbox.num_rows)
        return mailbox is not None

    def _deliver(self, pulse: Pulse) -> None:
        for letter in pulse.letters:
            mailbox = self._mailboxes.get(letter.request_id)
            if mailbox is not None:
                mailbox.put(letter)
                if isinstance(letter, Compiled) or letter.finish_reason is not None:
                    self._forget(letter.request_id)
        for request_id, error in pulse.refusals:
            if (mailbox := self._mailboxes.get(request_id)) is not None:
                mailbox.fail(error)
                self._forget(request_id)
        self._on_pulse(pulse)

    # ------------------------------------------------------------ health, on the event loop

    @property
    def failure(self) -> str | None:
        """Why the engine is not healthy; None while it is. An idle engine is healthy."""
        if self._death is not None:
            return self._death
        if not self._thread.is_alive():
            return "the engine thread is not running"
        if self.busy_seconds > self._stall_timeout:
            return f"the engine has not answered for {self._stall_timeout:g} s"
        return None

    @property
    def busy_seconds(self) -> float:
        """How long the engine has been at its step, or has not taken what came; 0 while it waits."""
        busy_since = self._busy_since
        return 0.0 if busy_since is None else time.monotonic() - busy_since

    @property
    def _busy_since(self) -> float | None:
        return min((at for at in (self.step_started_at, self._inbox.filled_at) if at is not None), default=None)

    def _watch_over(self) -> None:
        """Look again when what the engine is busy with would have stalled; while nothing is open nobody looks."""
        if self._watch is None:
            stalled_at = (self._busy_since or time.monotonic()) + self._stall_timeout
            self._watch = self._loop.call_later(stalled_at - time.monotonic() + LOOK_AFTER, self._look)

    def _look(self) -> None:
        self._watch = None
        if self.failure is not None:
            self._die(self.failure)
        elif self._mailboxes or self._busy_since is not None:
            self._watch_over()

    def _die(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
            self.fail_all(Unavailable(reason))
            self._on_death(reason)

    # ------------------------------------------------------------ the engine thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.step_started_at = None
            reason = f"the engine thread died: {type(error).__name__}: {error}"
            self._tell(self._die, reason)

    def _turn(self) -> bool:
        """Take what came, run one step, and wake the event loop. False when it is time to end."""
        items = self._inbox.take(wait=not self._engine.has_work)
        if None in items:
            return False
        self.step_started_at = time.monotonic()
        refusals = self._hand_over(items)
        before = self._engine.last_step
        letters = tuple(self._engine.step()) if self._engine.has_work else ()
        stats = self._engine.last_step
        self.step_started_at = None
        pulse = Pulse(
            letters,
            refusals,
            None if stats is before else stats,
            self._engine.num_waiting,
            self._engine.num_running,
            self._engine.num_free_slots,
        )
        self._tell(self._deliver, pulse)
        return self._death is None  # a step that came back after it was given up: no further ones

    def _tell(self, function: Callable[[T], None], message: T) -> None:
        """Have the event loop call `function`; where the loop has ended, nobody is left to be told."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, message)

    def _hand_over(self, items: list[Work | Abort | None]) -> tuple[tuple[str, RequestError], ...]:
        """Give the engine what came. Returns what it refused."""
        refusals = []
        for item in items:
            if isinstance(item, Abort):
                self._engine.abort(item.request_id)
            elif item is not None:
                try:
                    self._engine.add_request(item)
                except RequestError as error:
                    refusals.append((item.request_id, error))
        return tuple(refusals)
