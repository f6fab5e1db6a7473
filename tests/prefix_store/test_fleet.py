"""Several stores over one bucket and one database, as the replicas of a fleet: what one did holds for all."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from prefix_store.errors import (
    PreconditionFailed,
    PublicNameTaken,
    Quarantined,
    QuotaExceeded,
    StoreError,
    StoreUnavailable,
    TenantExists,
    Unauthorized,
    UnknownTask,
)
from prefix_store.principals import MAX_SECONDS
from prefix_store.store import PrefixStore
from prefix_store.tasks import TaskConfig
from prefix_store.tenants import Scope, Tenant, TenantLimits
from prefix_store.usage import Usage
from tests.prefix_store.durability import LOOP_TASK_IDS, State, kill_often, observe
from tests.prefix_store.homes import FleetHome, flip_a_bit, key_of
from tests.prefix_store.mortal import FleetWriter
from tests.prefix_store.servers import PostgreSQL, SeaweedFS
from tests.prefix_store.support import authenticate, publish

pytestmark = pytest.mark.fleet

NUM_KILLS = 8


@pytest.fixture
def store(fleet: FleetHome) -> Iterator[PrefixStore]:
    opened = fleet.open()
    yield opened
    opened.close()


@pytest.fixture
def other(fleet: FleetHome) -> Iterator[PrefixStore]:
    opened = fleet.open()
    yield opened
    opened.close()


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold that soon; a moment is added for the question itself."""
    until = time.monotonic() + seconds + 0.5
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def together(*changes: Callable[[], object]) -> list[object]:
    """Make them at the same time: what each returned, or the error it raised."""

    def attempt(change: Callable[[], object]) -> object:
        try:
            return change()
        except StoreError as error:
            return type(error)

    with ThreadPoolExecutor(len(changes)) as threads:
        return list(threads.map(attempt, changes))


# -- what one does holds for all ------------------------------------------------------------------------------------


def test_an_upload_to_one_is_served_by_the_other_at_once(store: PrefixStore, other: PrefixStore) -> None:
    with pytest.raises(UnknownTask):
        other.get("default", "poet")
    published = publish(store, seed=1)
    assert other.get("default", "poet").prefix.revision == published.version.native_sha256


def test_a_replacement_a_setting_and_a_rollback_hold_elsewhere_within_two_seconds(
    store: PrefixStore, other: PrefixStore
) -> None:
    publish(store, seed=1)
    assert other.get("default", "poet").version == 1
    publish(store, seed=2)
    assert within(MAX_SECONDS, lambda: other.get("default", "poet").version == 2)
    store.patch("default", "poet", version=1, change_config=lambda _: TaskConfig(description="calm"))
    assert within(MAX_SECONDS, lambda: other.get("default", "poet").config.description == "calm")
    assert other.get("default", "poet").version == 1


def test_traffic_and_its_end_hold_elsewhere_within_two_seconds(store: PrefixStore, other: PrefixStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    assert other.get("default", "poet", draw=0.0).version == 2
    store.patch("default", "poet", traffic={1: 0.5, 2: 0.5})
    assert within(MAX_SECONDS, lambda: other.get("default", "poet", draw=0.0).version == 1)
    store.quarantine("default", "poet", 1, "it fails")
    assert within(MAX_SECONDS, lambda: other.get("default", "poet", draw=0.0).version == 2)
    publish(other, seed=3)
    assert within(MAX_SECONDS, lambda: store.get("default", "poet", draw=0.0).version == 3)


def test_a_deletion_and_a_quarantine_hold_elsewhere_within_two_seconds(store: PrefixStore, other: PrefixStore) -> None:
    for task_id, seed in (("gone", 1), ("bad", 2)):
        publish(store, task_id, seed=seed)
        other.get("default", task_id)
    store.delete("default", "gone")
    store.quarantine("default", "bad", 1, "it fails")
    assert within(MAX_SECONDS, lambda: raises(UnknownTask, lambda: other.get("default", "gone")))
    assert within(MAX_SECONDS, lambda: raises(Quarantined, lambda: other.get("default", "bad")))
    assert other.cached("default", "gone") is None
    assert other.cached("default", "bad") is None


def raises(error: type[StoreError], ask: Callable[[], object]) -> bool:
    try:
        ask()
    except error:
        return True
    return False


def test_a_task_deleted_and_uploaded_anew_elsewhere_is_never_served_as_a_damaged_one(
    store: PrefixStore, other: PrefixStore, fleet: FleetHome
) -> None:
    publish(store, seed=1)
    late = fleet.open()  # knows the version and has not read its file yet
    late._pointers.get_or_read(("default", "poet"), lambda: late._read_pointer("default", "poet"))
    store.delete("default", "poet")
    with pytest.raises(UnknownTask):
        late.get("default", "poet")
    publish(other, seed=2)
    assert late.get("default", "poet").version == 1
    late.close()


def test_a_revoked_key_is_refused_elsewhere_within_two_seconds(store: PrefixStore, other: PrefixStore) -> None:
    store.tenants.add_tenant(Tenant(name="acme"))
    key, secret = store.tenants.create_key("acme", {Scope.GENERATE})
    assert authenticate(other.tenants, secret).tenant == "acme"
    store.tenants.revoke_key(key.key_id)
    assert within(MAX_SECONDS, lambda: raises(Unauthorized, lambda: authenticate(other.tenants, secret)))


def test_usage_of_all_adds_up(store: PrefixStore, other: PrefixStore) -> None:
    one = Usage(requests=1, prompt_tokens=2, generated_tokens=3, seconds=0.5)
    for _ in range(5):
        for replica in (store, other):
            replica.usage.add("acme", "poet", one)
        assert together(store.usage.flush, other.usage.flush) == [None, None]
    assert store.usage.by_task("acme")["poet"].requests == 10


# -- what several do at the same time -------------------------------------------------------------------------------


def test_uploads_of_one_new_task_at_the_same_time_get_numbers_of_their_own(
    store: PrefixStore, other: PrefixStore
) -> None:
    changes = [lambda seed=seed: publish((store, other)[seed % 2], seed=seed).version.version for seed in range(8)]
    assert sorted(together(*changes)) == list(range(1, 9))  # type: ignore[type-var]
    assert len(store.task("default", "poet").versions) == 8


def test_of_several_who_want_to_be_the_first_one_is(store: PrefixStore, other: PrefixStore) -> None:
    changes = [
        lambda seed=seed: publish((store, other)[seed % 2], seed=seed, if_none_match=True).version.version
        for seed in range(6)
    ]
    assert sorted(map(str, together(*changes))) == sorted(["1"] + [str(PreconditionFailed)] * 5)


def test_of_several_who_want_a_public_name_one_gets_it(store: PrefixStore, other: PrefixStore) -> None:
    for tenant in ("acme", "zeta"):
        publish(store, tenant=tenant)
    outcomes = together(
        lambda: store.patch("acme", "poet", public=True).tenant, lambda: other.patch("zeta", "poet", public=True).tenant
    )
    assert outcomes.count(PublicNameTaken) == 1


def test_of_several_who_add_a_tenant_one_does(store: PrefixStore, other: PrefixStore) -> None:
    acme = Tenant(name="acme")
    outcomes = together(*[lambda replica=replica: replica.tenants.add_tenant(acme) for replica in (store, other)])
    assert sorted(map(str, outcomes)) == sorted(["None", str(TenantExists)])


def test_two_do_not_pass_a_quota_together(store: PrefixStore, other: PrefixStore) -> None:
    store.tenants.add_tenant(Tenant(name="acme", limits=TenantLimits(max_tasks=3)))
    changes = [
        lambda number=number: publish((store, other)[number % 2], f"t{number}", tenant="acme", seed=number) and None
        for number in range(12)
    ]
    outcomes = together(*changes)
    assert (outcomes.count(None), outcomes.count(QuotaExceeded)) == (3, 9)


def test_a_deletion_takes_no_file_from_who_uploads_the_same_bytes_elsewhere(
    store: PrefixStore, other: PrefixStore, fleet: FleetHome
) -> None:
    """Each upload has files of its own, so neither has to know of the other."""

    def come_and_go() -> None:
        for _ in range(15):
            publish(store, "poet", seed=1)
            store.delete("default", "poet")

    def upload() -> None:
        for number in range(15):
            publish(other, f"t{number % 3}", seed=1)
            assert other.upload_bytes("default", f"t{number % 3}")
            if number % 2:
                other.delete("default", f"t{number % 3}")

    assert together(come_and_go, upload) == [None, None]
    assert store.upkeep.verify() == []
    assert fleet.files() == {key_of(store, task.task_id) for task in store.tasks("default")}


def test_the_same_bytes_repair_a_damaged_file_and_leave_none_beside_it(store: PrefixStore, fleet: FleetHome) -> None:
    publish(store, seed=1)
    flip_a_bit(fleet, key_of(store))
    assert [found.where for found in store.upkeep.verify()] == ["default/poet/1"]
    assert publish(store, seed=1).version.version == 1
    assert store.upkeep.verify() == []
    assert fleet.files() == {key_of(store)}


def test_a_sweep_beside_a_writer_takes_nothing_that_is_needed(store: PrefixStore, other: PrefixStore) -> None:
    def write() -> None:
        for seed in range(20):
            publish(store, seed=seed)

    def sweep() -> None:
        for _ in range(10):
            other.upkeep.sweep()

    assert together(write, sweep) == [None, None]
    assert store.upkeep.verify() == []


# -- what happens while something is down ---------------------------------------------------------------------------


def test_without_the_database_what_is_cached_is_served_and_nothing_is_written(
    store: PrefixStore, postgresql_server: PostgreSQL
) -> None:
    store.tenants.add_tenant(Tenant(name="acme"))
    _, secret = store.tenants.create_key("acme", {Scope.GENERATE})
    publish(store, tenant="acme", seed=1)
    store.get("acme", "poet")
    authenticate(store.tenants, secret)
    postgresql_server.stop()
    try:
        time.sleep(MAX_SECONDS)  # longer than anything is remembered unasked
        for _ in range(3):
            assert store.get("acme", "poet").version == 1
            assert store.cached("acme", "poet") is not None
            assert authenticate(store.tenants, secret).tenant == "acme"
        for ask in (lambda: publish(store, seed=2), store.ping, lambda: store.get("acme", "unknown")):
            with pytest.raises(StoreUnavailable):
                ask()
        with pytest.raises(StoreUnavailable):
            authenticate(store.tenants, "pp_zzzzzzzz_" + "0" * 64)
    finally:
        postgresql_server.start()
    assert within(2.0, lambda: not raises(StoreUnavailable, store.ping))
    assert publish(store, tenant="acme", seed=2).version.version == 2


def test_what_was_deleted_elsewhere_does_not_come_back_when_the_database_goes(
    store: PrefixStore, other: PrefixStore, postgresql_server: PostgreSQL
) -> None:
    publish(store, seed=1)
    other.get("default", "poet")
    store.delete("default", "poet")
    assert within(MAX_SECONDS, lambda: raises(UnknownTask, lambda: other.get("default", "poet")))
    postgresql_server.stop()
    try:
        with pytest.raises(StoreUnavailable):
            other.get("default", "poet")
    finally:
        postgresql_server.start()


@pytest.mark.parametrize("is_frozen", [False, True], ids=["gone", "frozen"])
def test_without_the_bucket_what_is_cached_is_served_and_nothing_is_taken_for_damage(
    store: PrefixStore, seaweedfs_server: SeaweedFS, is_frozen: bool
) -> None:
    publish(store, "poet", seed=1)
    publish(store, "clerk", seed=2)
    store.get("default", "poet")
    with seaweedfs_server.frozen() if is_frozen else seaweedfs_server.gone():
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.ping()
        assert time.monotonic() - started < 5
        assert store.get("default", "poet").version == 1
        if not is_frozen:  # where it answers nothing at all, these take the client's minute
            for ask in (lambda: publish(store, seed=3), lambda: store.get("default", "clerk"), store.upkeep.verify):
                with pytest.raises(StoreUnavailable):
                    ask()
    assert store.upkeep.verify() == []
    assert store.get("default", "clerk").version == 1


# -- what a killed process leaves -----------------------------------------------------------------------------------


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_acknowledged(fleet: FleetHome) -> None:
    def look() -> State:
        store = fleet.open()
        try:
            assert within(20, lambda: is_alone(store))  # its last transaction may still be on its way
            return observe(store, LOOP_TASK_IDS)
        finally:
            store.close()

    num_acknowledged, wrong = kill_often(lambda life: FleetWriter(fleet, life), look, NUM_KILLS, seed=1)
    assert wrong == []
    assert num_acknowledged > 0
    store = fleet.open()
    store.upkeep.sweep(timedelta(seconds=-10))
    assert store.upkeep.verify() == []
    num_files = sum(len(task.versions) for task in store.tasks("default"))
    assert len(fleet.files()) == num_files
    store.close()


def is_alone(store: PrefixStore) -> bool:
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with store._database.reading() as connection:
        num_others = connection.scalar(others)
    return num_others is not None and num_others <= store._database._engine.pool.checkedin()  # type: ignore[attr-defined]
