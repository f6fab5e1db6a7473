"""A tenant keeps no more than its limits, however many upload at once; the local one has none."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from prefix_store.errors import QuotaExceeded
from prefix_store.store import PrefixStore
from prefix_store.tenants import Tenant, TenantLimits
from tests.prefix_store.homes import Home
from tests.prefix_store.support import native_file, publish


def limit(store: PrefixStore, **limits: int) -> None:
    store.tenants.add_tenant(Tenant(name="acme", limits=TenantLimits(**limits)))


def test_one_task_too_many_is_refused_and_leaves_no_file(store: PrefixStore, home: Home) -> None:
    limit(store, max_tasks=2)
    for task_id in ("a", "b"):
        publish(store, task_id, tenant="acme")
    files = home.files()
    with pytest.raises(QuotaExceeded, match="3 tasks, and 'acme' may have 2"):
        publish(store, "c", tenant="acme", seed=1)
    assert home.files() == files
    publish(store, "a", tenant="acme", seed=2)
    store.delete("acme", "b")
    publish(store, "c", tenant="acme", seed=1)


def test_one_byte_too_many_is_refused_and_what_is_kept_already_is_not(store: PrefixStore) -> None:
    num_bytes = len(native_file())
    limit(store, max_bytes=2 * num_bytes)
    publish(store, tenant="acme", seed=1)
    publish(store, tenant="acme", seed=2)
    with pytest.raises(QuotaExceeded, match="bytes"):
        publish(store, tenant="acme", seed=3)
    assert publish(store, tenant="acme", seed=1).version.version == 1


def test_both_files_of_a_foreign_upload_count(store: PrefixStore) -> None:
    limit(store, max_bytes=len(native_file()))
    foreign = {"kind": "text", "num_virtual_tokens": 3, "backbone_checked": True}
    with pytest.raises(QuotaExceeded) as refused:
        store.publish("acme", "poet", upload=b"text", native=native_file(), **foreign)
    assert refused.value.wanted == len(native_file()) + len(b"text")


def test_uploads_at_the_same_time_do_not_pass_the_limit(store: PrefixStore) -> None:
    limit(store, max_tasks=3)

    def upload(seed: int) -> bool:
        try:
            publish(store, f"task-{seed}", tenant="acme", seed=seed)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(upload, range(12))) == 3
    assert len(store.tasks("acme")) == 3


def test_the_local_tenant_has_no_quota(store: PrefixStore) -> None:
    limit(store, max_tasks=0)
    for seed in range(3):
        publish(store, f"task-{seed}", seed=seed)
    with pytest.raises(QuotaExceeded):
        publish(store, tenant="acme")
