"""What was used, by tenant, task and day: counted in memory, and written when the caller says so.

Knows counters and one table. Knows nothing of requests or of who is billed.
"""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from threading import Lock

from sqlalchemy import Connection, func, insert, select, update

from prefix_store.database import Database, lock_name
from prefix_store.records import AnyRow
from prefix_store.schema import usage, usage_flushes

Day = tuple[str, str, str]  # tenant, task_id, the day in UTC (ISO 8601)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """`seconds` is how long rows ran, all of them added up."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            generated_tokens=self.generated_tokens + other.generated_tokens,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class DailyUsage:
    task_id: str
    day: date
    usage: Usage


class UsageLedger:
    """Thread-safe. What was added since the last `flush` is lost with the process; what was flushed counts once.

    That holds also for a flush whose commit failed: the next one looks up whether it happened. Errors: see `Database`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = secrets.token_hex(16)  # another one for every start and every process
        self._lock = Lock()  # held for dictionary operations only
        self._counted: dict[Day, Usage] = {}
        self._flushing = Lock()
        self._batch: Mapping[Day, Usage] = {}  # what the flush of this number writes, or has to write again
        self._number = 0

    def add(self, tenant: str, task_id: str, used: Usage) -> None:
        """Count, for today; never waits for the disk."""
        key = (tenant, task_id, datetime.now(UTC).date().isoformat())
        with self._lock:
            self._counted[key] = self._counted.get(key, Usage()) + used

    def flush(self) -> None:
        """Write what was added, in one transaction; after an error it is kept for the next flush."""
        with self._flushing:
            if self._batch:
                self._write()  # left over from a flush that failed
            with self._lock:
                self._batch, self._counted = self._counted, {}
            if self._batch:
                self._number += 1
                self._write()

    def by_day(self, tenant: str, task_id: str | None = None) -> list[DailyUsage]:
        """What was flushed, by task and day, the oldest day first."""
        if not tenant.isprintable():  # no tenant has such a name, and PostgreSQL takes no NUL
            return []
        found = select(usage).where(usage.c.tenant == tenant).order_by(usage.c.day, usage.c.task_id)
        if task_id is not None:
            found = found.where(usage.c.task_id == task_id)
        with self._database.reading() as connection:
            rows = connection.execute(found).all()
        return [DailyUsage(row.task_id, date.fromisoformat(row.day), _usage_of(row)) for row in rows]

    def by_task(self, tenant: str, task_ids: Collection[str] | None = None) -> dict[str, Usage]:
        """What was flushed, of all days; of these tasks, or of all. One that was not used is left out."""
        sums = [func.sum(usage.c[counter.name]).label(counter.name) for counter in fields(Usage)]
        found = select(usage.c.task_id, *sums).where(usage.c.tenant == tenant).group_by(usage.c.task_id)
        if task_ids is not None:
            found = found.where(usage.c.task_id.in_(task_ids))
        with self._database.reading() as connection:
            rows = connection.execute(found).all()
        return {row.task_id: _usage_of(row) for row in rows}

    def _write(self) -> None:
        with self._database.writing() as connection:
            lock_name(connection, "usage")  # first: a commit that seemed to fail may be under way still
            if self._last_written(connection) != self._number:
                for (tenant, task_id, day), used in sorted(self._batch.items()):
                    _increase(connection, tenant, task_id, day, used)
                self._note_written(connection)
        self._batch = {}

    def _last_written(self, connection: Connection) -> int:
        last = select(usage_flushes.c.number).where(usage_flushes.c.ledger == self._name)
        return connection.scalar(last) or 0

    def _note_written(self, connection: Connection) -> None:
        of_this = update(usage_flushes).where(usage_flushes.c.ledger == self._name)
        if not connection.execute(of_this.values(number=self._number)).rowcount:
            connection.execute(insert(usage_flushes).values(ledger=self._name, number=self._number))


def _usage_of(row: AnyRow) -> Usage:
    return Usage(
        requests=int(row.requests),  # PostgreSQL sums integers as decimals
        prompt_tokens=int(row.prompt_tokens),
        generated_tokens=int(row.generated_tokens),
        seconds=row.seconds,
    )


def _increase(connection: Connection, tenant: str, task_id: str, day: str, used: Usage) -> None:
    counters = asdict(used)
    row = (usage.c.tenant == tenant) & (usage.c.task_id == task_id) & (usage.c.day == day)
    increased = {name: usage.c[name] + amount for name, amount in counters.items()}
    if not connection.execute(update(usage).where(row).values(increased)).rowcount:
        connection.execute(insert(usage).values(tenant=tenant, task_id=task_id, day=day, **counters))
