"""A public task is everybody's who has none of that name, and changes with its owner's."""

import pytest

from prefix_store.errors import PublicNameTaken, UnknownTask
from prefix_store.store import PrefixStore
from prefix_store.tasks import TaskConfig
from tests.prefix_store.support import publish


@pytest.fixture
def shared(store: PrefixStore) -> PrefixStore:
    publish(store, tenant="acme", seed=1)
    store.patch("acme", "poet", public=True)
    return store


def test_another_tenants_task_is_unknown_until_it_is_public(store: PrefixStore) -> None:
    publish(store, tenant="acme", seed=1)
    with pytest.raises(UnknownTask):
        store.get("zeta", "poet")
    assert store.patch("acme", "poet", public=True).public
    assert store.get("zeta", "poet").tenant == "acme"
    assert store.cached("zeta", "poet") is not None
    assert store.task("zeta", "poet").tenant == "acme"


def test_a_public_task_is_loaded_once_for_all(shared: PrefixStore) -> None:
    prefixes = {shared.get(tenant, "poet").prefix for tenant in ("acme", "zeta", "default")}
    assert len(prefixes) == 1
    assert shared.stats.loads == 1


def test_ones_own_task_comes_first(shared: PrefixStore) -> None:
    shared.get("zeta", "poet")
    publish(shared, tenant="zeta", seed=2)
    assert shared.get("zeta", "poet").tenant == "zeta"
    assert [(task.tenant, task.task_id) for task in shared.tasks("zeta")] == [("zeta", "poet")]
    shared.delete("zeta", "poet")
    assert shared.get("zeta", "poet").tenant == "acme"


def test_who_borrows_a_task_sees_what_its_owner_does_to_it(shared: PrefixStore) -> None:
    assert shared.get("zeta", "poet").version == 1
    publish(shared, tenant="acme", seed=2)
    assert shared.cached("zeta", "poet") is None
    assert shared.get("zeta", "poet").version == 2
    shared.patch("acme", "poet", change_config=lambda _: TaskConfig(description="new"))
    assert shared.get("zeta", "poet").config.description == "new"
    shared.patch("acme", "poet", version=1)
    assert shared.get("zeta", "poet").version == 1
    shared.patch("acme", "poet", public=False)
    assert shared.cached("zeta", "poet") is None
    with pytest.raises(UnknownTask):
        shared.get("zeta", "poet")
    shared.patch("acme", "poet", public=True)
    shared.get("zeta", "poet")
    shared.delete("acme", "poet")
    with pytest.raises(UnknownTask):
        shared.get("zeta", "poet")


def test_a_public_task_is_read_by_others_and_neither_changed_nor_downloaded(shared: PrefixStore) -> None:
    for ask in (
        shared.upload_bytes,
        shared.delete,
        lambda tenant, task_id: shared.patch(tenant, task_id, version=1),
        lambda tenant, task_id: shared.patch(tenant, task_id, change_config=lambda _: TaskConfig()),
        lambda tenant, task_id: shared.patch(tenant, task_id, public=False),
        lambda tenant, task_id: shared.quarantine(tenant, task_id, 1, "no"),
    ):
        with pytest.raises(UnknownTask):
            ask("zeta", "poet")


def test_one_name_means_one_public_task(shared: PrefixStore) -> None:
    publish(shared, tenant="zeta", seed=2)
    with pytest.raises(PublicNameTaken, match="acme"):
        shared.patch("zeta", "poet", public=True)
    assert shared.patch("acme", "poet", public=True).public


def test_a_page_holds_ones_own_tasks_and_the_public_ones(shared: PrefixStore) -> None:
    for task_id in ("clerk", "zoo"):
        publish(shared, task_id, tenant="zeta")
    publish(shared, "secret", tenant="acme")
    assert shared.count("zeta") == 3
    first = shared.tasks("zeta", limit=2)
    assert [(task.tenant, task.task_id) for task in first] == [("zeta", "clerk"), ("acme", "poet")]
    assert [task.task_id for task in shared.tasks("zeta", limit=2, after="poet")] == ["zoo"]
