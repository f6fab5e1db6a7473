"""What was flushed counts once, whatever fails and however often the process starts."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection

from prefix_store.database import Database, sqlite_url
from prefix_store.errors import CommitUncertain, StoreUnavailable
from prefix_store.usage import Usage, UsageLedger

ONE = Usage(requests=1, prompt_tokens=10, generated_tokens=5, seconds=0.5)
TWO = Usage(requests=2, prompt_tokens=20, generated_tokens=10, seconds=1.0)


def test_usage_is_told_by_tenant_task_and_day_once_it_is_flushed(database: Database) -> None:
    ledger = UsageLedger(database)
    for tenant, task_id in [("acme", "poet"), ("acme", "clerk"), ("zeta", "poet"), ("acme", "poet")]:
        ledger.add(tenant, task_id, ONE)
    assert ledger.by_day("acme") == []
    ledger.flush()
    assert ledger.by_task("acme") == {"clerk": ONE, "poet": TWO}
    assert [(day.task_id, day.usage) for day in ledger.by_day("acme", "poet")] == [("poet", TWO)]
    assert abs((ledger.by_day("zeta")[0].day - datetime.now(UTC).date()).days) <= 1
    assert ledger.by_task("nobody") == {}
    assert ledger.by_task("acme", ["poet", "unused"]) == {"poet": TWO}


def test_usage_adds_up_over_flushes_and_starts(database: Database) -> None:
    for _ in range(2):
        ledger = UsageLedger(database)
        ledger.add("acme", "poet", ONE)
        ledger.flush()
        ledger.flush()
    assert UsageLedger(database).by_task("acme") == {"poet": TWO}


def test_many_threads_lose_nothing(database: Database) -> None:
    ledger = UsageLedger(database)

    def work(_: int) -> None:
        for _ in range(50):
            ledger.add("acme", "poet", ONE)
        ledger.flush()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert ledger.by_task("acme")["poet"].requests == 200


class FailingDatabase(Database):
    """Its next commit fails, after it happened or before."""

    has_happened: bool | None = None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        has_happened, self.has_happened = self.has_happened, None
        if has_happened is False:
            raise StoreUnavailable("the disk is gone")
        with super().writing() as connection:
            yield connection
        if has_happened is True:
            raise CommitUncertain("the connection broke")


@pytest.mark.parametrize("has_happened", [True, False])
def test_a_flush_that_failed_counts_once_whether_it_happened_or_not(tmp_path: Path, has_happened: bool) -> None:
    database = FailingDatabase(sqlite_url(tmp_path / "registry.sqlite3"))
    ledger = UsageLedger(database)
    ledger.add("acme", "poet", ONE)
    database.has_happened = has_happened
    with pytest.raises(StoreUnavailable):
        ledger.flush()
    ledger.add("acme", "poet", ONE)
    ledger.flush()
    assert ledger.by_task("acme") == {"poet": TWO}
    database.close()
