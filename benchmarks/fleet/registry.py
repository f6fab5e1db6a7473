"""What a task costs the registry and each server's memory, by which a million of them is reckoned.

PostgreSQL on this machine, without its syncs, with 10,000 tasks of one version each; the server's own code asks it.

- `registry_bytes_per_task`, `usage_bytes_per_row`: in the database, indexes and all;
- `lookups_per_second`: of tasks that this server does not know or has not asked for within two seconds, by six threads
  of one process; `lookup_processor_ms` of that process for one;
- `new_usage_rows_per_second`, `usage_rows_per_second`: written by one server, which all servers of a fleet do in turns;
- `quota_ms_per_task`: asking the database, at an upload, whether its tenant may have it, over the tenant's tasks;
- `records_ms_per_task`: checking all records and listing all versions, as a server does when it starts;
- `version_bytes`: one version of that list, in a server's memory; `pointer_bytes`: one task that was asked for.

    python -m benchmarks.fleet.registry [--rounds 5] [--out FILE.json]
"""

import argparse
import hashlib
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Table, func, select

from benchmarks.load import processor_seconds
from benchmarks.many_tasks import NUM_VIRTUAL_TOKENS, TENANT, task_name
from benchmarks.report import finish
from prefix_store.database import Database
from prefix_store.pointers import Pointer, ServedPointers
from prefix_store.quotas import check_quota
from prefix_store.registry import Registry
from prefix_store.rows import add_task, add_version
from prefix_store.schema import tasks, usage, versions
from prefix_store.tasks import TaskConfig, Upload
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import Tenant, TenantLimits
from prefix_store.usage import Usage, UsageLedger
from tests.prefix_store.servers import postgresql

NUM_TASKS = 10_000
NUM_LOOKUPS = 2_000
NUM_USAGE_ROWS = 2_000
NUM_THREADS = 6  # which asyncio.to_thread has on two processors
FINGERPRINT = "f" * 64


def fill(database: Database) -> None:
    """As many uploads would, in one transaction."""
    with database.writing() as connection:
        for number in range(NUM_TASKS):
            add_task(connection, TENANT, task_name(number), TaskConfig())
            add_version(connection, TENANT, task_name(number), 1, upload(number))
    limits = TenantLimits(max_tasks=NUM_TASKS, max_bytes=1 << 40)
    TenantRegistry(database).add_tenant(Tenant(name=TENANT, limits=limits))


def upload(number: int) -> Upload:
    sha256 = hashlib.sha256(task_name(number).encode()).hexdigest()
    return Upload(
        sha256=sha256,
        native_sha256=sha256,
        kind="prefix",
        num_virtual_tokens=NUM_VIRTUAL_TOKENS,
        num_bytes=737_544,
        num_native_bytes=737_544,
        backbone=FINGERPRINT,
        backbone_checked=True,
        created_at=datetime.now(UTC),
    )


def table_bytes(database: Database, table: Table) -> int:
    with database.reading() as connection:
        return connection.scalar(select(func.pg_total_relation_size(table.name))) or 0


def measure_lookups(registry: Registry) -> dict[str, float]:
    names = [task_name(number * 37 % NUM_TASKS) for number in range(NUM_LOOKUPS)]
    with ThreadPoolExecutor(NUM_THREADS) as threads, processor_seconds() as spent:
        seconds = seconds_of(lambda: list(threads.map(lambda name: registry.served(TENANT, name), names)))
    return {"lookups_per_second": NUM_LOOKUPS / seconds, "lookup_processor_ms": spent[0] / NUM_LOOKUPS * 1e3}


def measure_quota(database: Database) -> dict[str, float]:
    def check() -> None:
        with database.writing() as connection:
            check_quota(connection, TENANT, num_new_tasks=0, num_new_bytes=0)

    return {"quota_ms_per_task": seconds_of(check) / NUM_TASKS * 1e3}


def measure_usage(database: Database, tenant: str) -> dict[str, float]:
    """The tenant has no rows yet."""
    rates = {}
    before = table_bytes(database, usage)
    for name in ("new_usage_rows_per_second", "usage_rows_per_second"):
        ledger = UsageLedger(database)
        for number in range(NUM_USAGE_ROWS):
            ledger.add(tenant, task_name(number), Usage(requests=1, prompt_tokens=32, generated_tokens=64, seconds=1.0))
        rates[name] = NUM_USAGE_ROWS / seconds_of(ledger.flush)
    return rates | {"usage_bytes_per_row": (table_bytes(database, usage) - before) / NUM_USAGE_ROWS}


def measure_records(registry: Registry) -> dict[str, float]:
    seconds = seconds_of(registry.damaged_records) + seconds_of(registry.all_versions)
    return {"records_ms_per_task": seconds / NUM_TASKS * 1e3}


def measure_memory(registry: Registry) -> dict[str, float]:
    def bytes_kept(make: Callable[[], object]) -> int:
        before, _ = tracemalloc.get_traced_memory()
        kept = make()
        after, _ = tracemalloc.get_traced_memory()
        del kept
        return after - before

    def asked_for() -> ServedPointers:
        pointers = ServedPointers(max_seconds=2.0)
        for name in map(task_name, range(NUM_LOOKUPS)):
            pointers.get_or_read((TENANT, name), lambda name=name: Pointer(*registry.served(TENANT, name)))  # type: ignore[misc]
        return pointers

    tracemalloc.start()
    try:
        return {
            "version_bytes": bytes_kept(registry.all_versions) / NUM_TASKS,
            "pointer_bytes": bytes_kept(asked_for) / NUM_LOOKUPS,
        }
    finally:
        tracemalloc.stop()


def seconds_of(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description="What a task costs the registry")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows: defaultdict[str, list[float]] = defaultdict(list)
    with postgresql() as server, closing(Database(f"{server.url}postgres")) as database:
        fill(database)
        registry = Registry(database, FINGERPRINT)
        for number in range(args.rounds):
            measured = {
                "registry_bytes_per_task": (table_bytes(database, tasks) + table_bytes(database, versions)) / NUM_TASKS,
                **measure_lookups(registry),
                **measure_usage(database, f"tenant-{number}"),
                **measure_quota(database),
                **measure_records(registry),
                **measure_memory(registry),
            }
            for name, value in measured.items():
                rows[name].append(value)
    finish("registry", rows, {name: statistics.median(values) for name, values in rows.items()}, args.out)


if __name__ == "__main__":
    main()
