"""The border between the event loop and the engine's process: works and aborts out, one pulse for each step in.

What a step did is put into each request's mailbox. Knows nothing of text, of HTTP, or of how the process is started.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from batching.checks import Capacity, check_request
from batching.types import Abort, Compiled, Request, RequestError
from prefix_store.prefix import Prefix
from server.channel import LoopChannel
from server.engine_messages import Death, Letter, Pulse, Work
from server.errors import ServerError, Unavailable
from server.mailboxes import Mailbox, Read
from server.room import Place, Room
from server.sent_prefixes import SentPrefixes
from server.turns import Turns

LOOK_AFTER = 0.01  # seconds past the moment of stalling, so that a look at that moment cannot come too early
OVERSLEPT = 1.0  # seconds past its time at which a look tells of this process: it was stopped, or the machine was


class EngineRun(Protocol):
    """Where the engine runs; `server.engine_process.EngineProcess` is one."""

    socket: socket.socket

    @property
    def pid(self) -> int: ...

    def end(self) -> int:
        """End it where it has not ended; returns its exit status. Called in a thread, or when it has ended already."""


class AsyncEngine:
    """The engine, seen from the event loop. Made and used there."""

    def __init__(
        self,
        run: EngineRun,
        capacity: Capacity,
        *,
        max_open_rows: int,
        stall_timeout: float,
        on_pulse: Callable[[Pulse], None],
        on_death: Callable[[str], None],
    ) -> None:
        """`on_pulse` is called after each step, `on_death` once, when the engine cannot go on."""
        self._run = run
        self._capacity = capacity
        self.room = Room(capacity.max_num_seqs, max_open_rows)
        self._stall_timeout = stall_timeout
        self._on_pulse = on_pulse
        self._on_death = on_death
        self._channel = LoopChannel(self._hear, self._lost)
        self._prefixes = SentPrefixes(self._channel.send)
        self._mailboxes: dict[str, Mailbox] = {}
        # Where many rows end in one step, others are heard between their answers.
        self._last_letters: Turns[Letter] = Turns(self._end)
        self._used: dict[str, tuple[Prefix | None, ...]] = {}  # by the requests that have mailboxes
        self._num_sent = 0
        self._waits_since: float | None = None  # for the engine's next word; None while it has nothing to do
        self._watch: asyncio.TimerHandle | None = None
        self._death: str | None = None

    @property
    def max_model_len(self) -> int:
        return self._capacity.max_model_len

    @property
    def max_num_seqs(self) -> int:
        return self._capacity.max_num_seqs

    @property
    def pid(self) -> int:
        return self._run.pid

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._channel, sock=self._run.socket)

    async def stop(self) -> None:
        """End the engine, whatever it is at, and every open request with an error."""
        self._death = self._death or "the server is shutting down"
        self.fail_all(Unavailable(self._death))
        if self._watch is not None:
            self._watch.cancel()
        self._channel.close()
        await asyncio.to_thread(self._run.end)

    # ------------------------------------------------------------ requests

    def check_room(self, tenant: str, num_rows: int = 1, max_queued: int | None = None, num_kept: int = 0) -> None:
        """Raise as `Room.check` where there is no room for the tenant, `Unavailable` where the engine is dead."""
        if self._death is not None:
            raise Unavailable(self._death)
        self.room.check(tenant, num_rows, max_queued, num_kept)

    def check(self, work: Work) -> None:
        """Raise `RequestError` if this can never be served."""
        check_request(work, self._capacity)

    @contextlib.contextmanager
    def submitted(
        self,
        *works: Work,
        read: Read,
        place: Place | None = None,
        num_rows: int = 1,
        max_queued: int | None = None,
    ) -> Iterator[Mailbox]:
        """Queue one tenant's works, all at once, for as long as the block runs. Their letters come into one mailbox.

        Leaving the block, in whatever way, aborts what is not finished. `read` is the mailbox's; `num_rows` is how many
        slots each work will take, `max_queued` how many rows of the tenant may wait; they take over what the request's
        `place` keeps. Raises as `check_room`.
        """
        tenant = works[0].tenant
        self.check_room(tenant, num_rows * len(works), max_queued, 0 if place is None else place.num_rows)
        if place is not None:
            place.leave()
        mailbox = Mailbox(tenant, num_rows, read)
        for work in works:
            self._mailboxes[work.request_id] = mailbox
            self._used[work.request_id] = work.prefixes if isinstance(work, Request) else ()
            self._prefixes.use(self._used[work.request_id])
            self.room.take(tenant, num_rows)
        try:
            self._send(*works)
            yield mailbox
        finally:
            self.abort(*(work.request_id for work in works))
            mailbox.close()

    def abort(self, *request_ids: str) -> None:
        """Free what these works hold; one that has ended is ignored."""
        open_ids = [request_id for request_id in request_ids if request_id in self._mailboxes]
        if open_ids:
            self._send(*map(Abort, open_ids))
        for request_id in open_ids:
            self._forget(request_id)

    def fail_all(self, error: ServerError) -> None:
        """End every open request with `error`; their readers then abort them."""
        self._last_letters.finish()
        for mailbox in self._mailboxes.values():
            mailbox.fail(error)

    def _forget(self, request_id: str) -> None:
        mailbox = self._mailboxes.pop(request_id)
        self._prefixes.leave(self._used.pop(request_id))
        self.room.give_back(mailbox.tenant, mailbox.num_rows)

    def _send(self, *items: Work | Abort) -> None:
        """The engine takes them in one step."""
        self._channel.send(items, self._prefixes.number_of)
        self._num_sent += len(items)
        self._waits_since = self._waits_since or time.monotonic()
        self._watch_over()

    # ------------------------------------------------------------ what the engine says

    def _hear(self, message: Pulse | Death) -> None:
        if isinstance(message, Death):
            self._die(message.reason)
        elif self._death is None:  # what was given up stays so, should it go on after all
            self._deliver(message)

    def _deliver(self, pulse: Pulse) -> None:
        goes_on = pulse.has_work or pulse.num_taken < self._num_sent
        self._waits_since = time.monotonic() if goes_on else None
        for letter in pulse.letters:
            if isinstance(letter, Compiled) or letter.finish_reason is not None:
                self._last_letters.add(letter)
            elif (mailbox := self._mailboxes.get(letter.request_id)) is not None:
                mailbox.put(letter)
        for request_id, reason in pulse.refusals:
            if (mailbox := self._mailboxes.get(request_id)) is not None:
                mailbox.fail(RequestError(reason))
                self._forget(request_id)
        self._on_pulse(pulse)

    def _end(self, letter: Letter) -> None:
        """Put a work's last letter. Then its answer is written, and the next request gets its room."""
        if (mailbox := self._mailboxes.get(letter.request_id)) is not None:
            self._forget(letter.request_id)
            mailbox.put(letter)

    def _lost(self) -> None:
        if self._death is None:
            self._die(f"the engine's process ended with status {self._run.end()}")

    # ------------------------------------------------------------ health

    @property
    def failure(self) -> str | None:
        """Why the engine is not healthy; None while it is. An idle engine is healthy."""
        if self._death is not None:
            return self._death
        if self.busy_seconds > self._stall_timeout:
            return f"the engine has not answered for {self._stall_timeout:g} s"
        return None

    @property
    def busy_seconds(self) -> float:
        """How long the engine has been at its step, or has not taken what came; 0 while it has nothing to do."""
        since = self._waits_since  # once: a scrape of the metrics asks from its own thread
        return 0.0 if since is None else time.monotonic() - since

    def _watch_over(self) -> None:
        """Look again when what the engine is busy with would have stalled; while nothing is open nobody looks."""
        if self._watch is None:
            seconds = self._stall_timeout - self.busy_seconds + LOOK_AFTER
            self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        assert self._watch is not None
        if asyncio.get_running_loop().time() - self._watch.when() > OVERSLEPT and self._waits_since is not None:
            self._waits_since = time.monotonic()  # what the engine has said meanwhile is still to be read
        self._watch = None
        if self.failure is not None:
            self._die(self.failure)
        elif self._mailboxes or self._waits_since is not None:
            self._watch_over()

    def _die(self, reason: str) -> None:
        if self._death is None:
            self._death = reason
            self.fail_all(Unavailable(reason))
            self._on_death(reason)
