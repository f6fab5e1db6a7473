"""Several versions of a task share its requests by weight, until somebody says again which one is served."""

import shutil
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from prefix_store.backup import restore
from prefix_store.errors import Quarantined, StaleVersion, UnknownVersion
from prefix_store.store import PrefixStore
from tests.prefix_store.homes import DirectoryHome, Home, in_a_directory
from tests.prefix_store.support import OTHER_BACKBONE, keys_and_values, publish

CANARY = {1: 0.9, 2: 0.1}


@pytest.fixture
def store(store: PrefixStore) -> PrefixStore:
    """With a task of two versions, of which the first gets nine requests in ten."""
    publish(store, seed=1)
    publish(store, seed=2)
    store.patch("default", "poet", version=1, traffic=CANARY)
    return store


def drawn(store: PrefixStore, tenant: str = "default") -> Counter[int]:
    """How many of a hundred requests each version gets."""
    return Counter(store.get(tenant, "poet", draw=i / 100).version for i in range(100))


def test_each_version_gets_its_share_of_the_requests(store: PrefixStore) -> None:
    assert drawn(store) == {1: 90, 2: 10}
    assert torch.equal(store.get("default", "poet", draw=0.95).prefix.past_key_values, keys_and_values(2))
    cached = store.cached("default", "poet", draw=0.95)
    assert cached is not None
    assert cached.version == 2


def test_weights_are_relative_and_told_as_they_were_given(store: PrefixStore) -> None:
    task = store.patch("default", "poet", traffic={2: 1, 1: 4})
    assert store.task("default", "poet") == task
    assert (task.served_version, task.traffic) == (1, {1: 4, 2: 1})
    assert drawn(store) == {1: 80, 2: 20}


def test_an_upload_a_rollback_and_an_empty_traffic_each_end_it(store: PrefixStore) -> None:
    store.patch("default", "poet", traffic={})
    assert drawn(store) == {1: 100}
    store.patch("default", "poet", traffic=CANARY)
    store.patch("default", "poet", version=2)
    assert drawn(store) == {2: 100}
    for seed, version in ((3, 3), (2, 2)):  # a new version, then an older one's bytes
        store.patch("default", "poet", traffic=CANARY)
        assert publish(store, seed=seed).version.version == version
        assert drawn(store) == {version: 100}
        assert store.task("default", "poet").traffic == {}


def test_the_served_versions_own_bytes_end_it_too(store: PrefixStore) -> None:
    assert publish(store, seed=1).changed
    assert drawn(store) == {1: 100}
    assert not publish(store, seed=1).changed


def test_settings_do_not_end_it(store: PrefixStore) -> None:
    store.patch("default", "poet", public=True, change_config=lambda config: config)
    assert drawn(store) == {1: 90, 2: 10}


def test_a_version_that_is_kept_only_gets_no_request_until_it_is_given_some(store: PrefixStore) -> None:
    kept = publish(store, seed=3, serve=False)
    assert (kept.version.version, kept.changed) == (3, True)
    assert not publish(store, seed=3, serve=False).changed
    assert drawn(store) == {1: 90, 2: 10}
    store.patch("default", "poet", traffic={1: 0.5, 3: 0.5})
    assert drawn(store) == {1: 50, 3: 50}


def test_the_first_version_of_a_task_is_served_whatever_was_said(store: PrefixStore) -> None:
    publish(store, "clerk", seed=4, serve=False)
    assert store.get("default", "clerk").version == 1


def test_only_versions_that_can_be_served_may_have_a_share(store: PrefixStore) -> None:
    store.quarantine("default", "poet", 2, "it fails")
    with pytest.raises(UnknownVersion):
        store.patch("default", "poet", traffic={1: 1, 3: 1})
    with pytest.raises(Quarantined):
        store.patch("default", "poet", traffic={1: 1, 2: 1})
    assert store.task("default", "poet").traffic == CANARY


def test_a_version_in_quarantine_leaves_its_share_to_the_others_and_gets_it_back(store: PrefixStore) -> None:
    publish(store, seed=3)
    store.patch("default", "poet", traffic={1: 0.5, 2: 0.25, 3: 0.25})
    store.quarantine("default", "poet", 1, "it fails")
    assert drawn(store) == {2: 50, 3: 50}
    publish(store, seed=1, serve=False)  # its own bytes, which release it
    assert drawn(store) == {1: 50, 2: 25, 3: 25}


def test_where_every_share_is_in_quarantine_the_served_version_answers(store: PrefixStore) -> None:
    publish(store, seed=3)
    store.patch("default", "poet", traffic={1: 1})
    store.quarantine("default", "poet", 1, "it fails")
    assert drawn(store) == {3: 100}
    store.quarantine("default", "poet", 3, "so does this")
    with pytest.raises(Quarantined, match="so does this"):
        store.get("default", "poet")


def test_under_another_backbone_its_versions_are_stale(store: PrefixStore, home: Home) -> None:
    store.close()
    again = home.open(OTHER_BACKBONE)
    with pytest.raises(StaleVersion):
        again.get("default", "poet")
    with pytest.raises(StaleVersion):
        again.patch("default", "poet", traffic=CANARY)
    again.close()


def test_a_public_tasks_traffic_is_everybodys(store: PrefixStore) -> None:
    store.patch("default", "poet", public=True)
    assert drawn(store, tenant="acme") == {1: 90, 2: 10}
    store.patch("default", "poet", traffic={1: 0.5, 2: 0.5})
    assert drawn(store, tenant="acme") == {1: 50, 2: 50}


def test_it_outlives_the_process(store: PrefixStore, home: Home) -> None:
    store.close()
    again = home.open()
    assert again.task("default", "poet").traffic == CANARY
    assert drawn(again) == {1: 90, 2: 10}
    again.close()


def test_who_holds_a_version_is_not_concerned_by_its_deletion(store: PrefixStore, home: Home) -> None:
    held = store.get("default", "poet", draw=0.95)
    store.delete("default", "poet")
    assert home.files() == set()
    assert torch.equal(held.prefix.past_key_values, keys_and_values(2))
    publish(store, seed=5)
    assert drawn(store) == {1: 100}


def test_a_sweep_leaves_every_version_that_has_a_share(store: PrefixStore, home: Home) -> None:
    assert store.upkeep.sweep(timedelta(seconds=-60)) == 0
    assert drawn(store) == {1: 90, 2: 10}


@in_a_directory
def test_a_backup_has_it(store: PrefixStore, tmp_path: Path) -> None:
    store.upkeep.backup(tmp_path / "copy")
    restore(tmp_path / "copy", tmp_path / "other")
    again = DirectoryHome(tmp_path / "other").open()
    assert again.task("default", "poet").traffic == CANARY
    again.close()
    shutil.rmtree(tmp_path / "other")
