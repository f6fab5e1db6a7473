"""How much a tenant may keep, checked inside the transaction that adds to it, so that no race passes it.

Knows the tables' counts and a tenant's limits. Knows nothing of files.
"""

from sqlalchemy import Connection, Table, case, func, select

from prefix_store.errors import QuotaExceeded
from prefix_store.records import checked
from prefix_store.schema import tasks, tenants, versions
from prefix_store.tenants import limits_of


def check_quota(connection: Connection, tenant: str, *, num_new_tasks: int, num_new_bytes: int) -> None:
    """Raise `QuotaExceeded` if that much more would be too much.

    A tenant that is not in the table, as the local one is, has no limit. Until the transaction ends nobody else adds
    to the tenant's. A file that two versions share counts twice.
    """
    row = connection.execute(select(tenants).where(tenants.c.name == tenant).with_for_update()).first()
    if row is None:
        return
    limits = limits_of(checked(tenants, row).limits)
    of_natives = case((versions.c.sha256 != versions.c.native_sha256, versions.c.num_native_bytes), else_=0)
    num_tasks = num_new_tasks + _total(connection, tasks, func.count(), tenant)
    num_bytes = num_new_bytes + _total(connection, versions, func.sum(versions.c.num_bytes + of_natives), tenant)
    if num_tasks > limits.max_tasks and num_new_tasks:
        raise QuotaExceeded(tenant, "tasks", num_tasks, limits.max_tasks)
    if num_bytes > limits.max_bytes:
        raise QuotaExceeded(tenant, "bytes", num_bytes, limits.max_bytes)


def _total(connection: Connection, table: Table, amount: object, tenant: str) -> int:
    total = connection.scalar(select(amount).select_from(table).where(table.c.tenant == tenant))  # type: ignore[call-overload]
    return int(total or 0)
