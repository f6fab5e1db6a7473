"""How many rows are open, running or waiting, and who may have more of them.

Knows tenants, counts and the event loop's clock. Knows nothing of what the rows do.
"""

import asyncio
from collections import Counter

from batching.types import RequestError
from server.errors import Overloaded, RateLimited

MAX_QUEUED_PER_SLOT_OF_TENANT = 2
# For which a row's room is kept until the body has come and is understood: a queue of heads alone soon ends.
BODY_SECONDS = 1.0


class Room:
    """Used on the event loop. Whoever takes rows gives them back."""

    def __init__(self, num_slots: int, max_rows: int) -> None:
        self._num_slots = num_slots
        self.max_rows = max_rows
        self._rows: Counter[str] = Counter()  # by tenant; none is zero

    @property
    def num_rows(self) -> int:
        return self._rows.total()

    def check(self, tenant: str, num_rows: int, max_queued: int | None, num_kept: int = 0) -> None:
        """Raise unless the tenant may have `num_rows` for a request; `max_queued` of its rows may wait (None: twice the
        slots).

        `num_kept` of them the request has already: what was promised holds, whoever came in since.

        `RateLimited` where that is too many for this tenant, `Overloaded` where others leave no room, `RequestError`
        where there never is. A tenant with less than an equal part of the room always gets in, so that it cannot be
        kept out by others' full queues.
        """
        waiting = MAX_QUEUED_PER_SLOT_OF_TENANT * self._num_slots if max_queued is None else max_queued
        most = min(self.max_rows, self._num_slots + waiting)
        if num_rows > most:
            raise RequestError(f"the request makes {num_rows} rows; this tenant may have {most} at once")
        num_more = num_rows - num_kept
        if num_more <= 0:
            return
        wanted = self._rows[tenant] + num_more
        if wanted > self._num_slots + waiting:
            raise RateLimited(f"this tenant has {self._rows[tenant]} rows running or waiting; {waiting} may wait", 1.0)
        num_tenants = len(self._rows.keys() | {tenant})
        if self.num_rows + num_more > self.max_rows and wanted > self.max_rows // num_tenants:
            raise Overloaded(self.num_rows, self.max_rows)

    def take(self, tenant: str, num_rows: int) -> None:
        self._rows[tenant] += num_rows

    def give_back(self, tenant: str, num_rows: int) -> None:
        self._rows[tenant] -= num_rows
        if not self._rows[tenant]:
            del self._rows[tenant]


class Place:
    """Room that is kept for one request of a tenant, so that no more are let in than there is room for.

    From its head on for one row, for a second; for all its rows once they are known, until they are queued. Whoever
    keeps it leaves it.
    """

    def __init__(self, room: Room, tenant: str) -> None:
        self._room = room
        self._tenant = tenant
        self.num_rows = 0
        self._lapse: asyncio.TimerHandle | None = None

    def keep_for_body(self) -> None:
        self.keep(1)
        self._lapse = asyncio.get_running_loop().call_later(BODY_SECONDS, self.leave)

    def keep(self, num_rows: int) -> None:
        """In place of what it has."""
        self.leave()
        self.num_rows = num_rows
        self._room.take(self._tenant, num_rows)

    def leave(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
            self._lapse = None
        if self.num_rows:
            self._room.give_back(self._tenant, self.num_rows)
            self.num_rows = 0
