"""How many rows are open, running or waiting, and who may have more of them.

Knows tenants and counts. Knows nothing of what the rows do.
"""

from collections import Counter

from batching.types import RequestError
from server.errors import Overloaded, RateLimited

MAX_QUEUED_PER_SLOT_OF_TENANT = 2


class Room:
    """Used on the event loop. Whoever takes rows gives them back."""

    def __init__(self, num_slots: int, max_rows: int) -> None:
        self._num_slots = num_slots
        self.max_rows = max_rows
        self._rows: Counter[str] = Counter()  # by tenant; none is zero

    @property
    def num_rows(self) -> int:
        return self._rows.total()

    def check(self, tenant: str, num_rows: int, max_queued: int | None) -> None:
        """Raise unless the tenant may have `num_rows` more, of which `max_queued` (None: twice the slots) may wait.

        `RateLimited` where that is too many for this tenant, `Overloaded` where others leave no room, `RequestError`
        where there never is. A tenant with less than an equal part of the room always gets in, so that it cannot be
        kept out by others' full queues.
        """
        if num_rows > self.max_rows:
            raise RequestError(f"the request makes {num_rows} rows; the server holds {self.max_rows}")
        wanted = self._rows[tenant] + num_rows
        waiting = MAX_QUEUED_PER_SLOT_OF_TENANT * self._num_slots if max_queued is None else max_queued
        if wanted > self._num_slots + waiting:
            raise RateLimited(f"this tenant has {self._rows[tenant]} rows running or waiting; {waiting} may wait", 1.0)
        num_tenants = len(self._rows.keys() | {tenant})
        if self.num_rows + num_rows > self.max_rows and wanted > self.max_rows // num_tenants:
            raise Overloaded(self.num_rows, self.max_rows)

    def take(self, tenant: str, num_rows: int) -> None:
        self._rows[tenant] += num_rows

    def give_back(self, tenant: str, num_rows: int) -> None:
        self._rows[tenant] -= num_rows
        if not self._rows[tenant]:
            del self._rows[tenant]
