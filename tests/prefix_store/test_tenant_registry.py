"""Who a key proves, for how long, and that one that is not good says nothing of why."""

import hmac
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import event

from prefix_store.database import Database
from prefix_store.errors import (
    CorruptRecord,
    InvalidTenant,
    StoreUnavailable,
    TenantExists,
    Unauthorized,
    UnknownKey,
    UnknownTenant,
)
from prefix_store.principals import Principals, Remembered
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import Principal, Scope, Tenant, TenantLimits
from tests.prefix_store.homes import in_sqlite
from tests.prefix_store.support import authenticate

START = datetime(2026, 11, 24, tzinfo=UTC)
ACME = Tenant(name="acme", weight=2.0, limits=TenantLimits(max_tasks=7))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_registry(database: Database, clock: Clock) -> TenantRegistry:
    return TenantRegistry(database, principals=Principals(clock.monotonic), now=clock.now)


@pytest.fixture
def registry(database: Database, clock: Clock) -> TenantRegistry:
    opened = a_registry(database, clock)
    opened.add_tenant(ACME)
    return opened


def disable(registry: TenantRegistry, name: str) -> None:
    registry.change_tenant(name, lambda tenant: replace(tenant, disabled=True))


def test_a_tenant_is_read_as_it_was_written(registry: TenantRegistry) -> None:
    registry.add_tenant(Tenant(name="Zeta", weight=3))
    assert registry.tenant("acme") == ACME
    assert registry.tenants() == [Tenant(name="Zeta", weight=3), ACME]
    assert registry.change_tenant("acme", lambda tenant: replace(tenant, weight=5.0)).weight == 5.0
    assert registry.tenant("acme").weight == 5.0


def test_tenants_have_names_of_their_own(registry: TenantRegistry) -> None:
    with pytest.raises(TenantExists):
        registry.add_tenant(ACME)
    for ask in (registry.tenant, partial(disable, registry), lambda name: registry.create_key(name, {Scope.TASKS})):
        with pytest.raises(UnknownTenant):
            ask("nobody")


def test_two_changes_of_a_tenant_at_once_are_both_kept(registry: TenantRegistry) -> None:
    in_first, may_end = Event(), Event()

    def slowly(tenant: Tenant) -> Tenant:
        in_first.set()
        may_end.wait(20)
        return replace(tenant, weight=5.0)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(registry.change_tenant, "acme", slowly)
        in_first.wait(20)
        second = pool.submit(disable, registry, "acme")
        may_end.set()
        first.result(), second.result()
    assert registry.tenant("acme") == replace(ACME, weight=5.0, disabled=True)


def test_a_key_proves_its_tenant_and_opens_its_scopes(registry: TenantRegistry) -> None:
    key, secret = registry.create_key("acme", {Scope.GENERATE, Scope.TASKS})
    principal = authenticate(registry, secret)
    assert (principal.tenant, principal.key_id) == ("acme", key.key_id)
    assert principal.scopes == {Scope.GENERATE, Scope.TASKS}
    assert (principal.weight, principal.limits) == (ACME.weight, ACME.limits)


def test_a_key_without_a_scope_is_not_made(registry: TenantRegistry) -> None:
    with pytest.raises(InvalidTenant, match="scope"):
        registry.create_key("acme", set())


@in_sqlite
def test_the_secret_is_kept_nowhere(registry: TenantRegistry, tmp_path: Path) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    hidden = secret.rsplit("_", 1)[1].encode()
    assert all(hidden not in path.read_bytes() for path in tmp_path.iterdir())


def test_whether_there_ever_was_a_key_is_remembered_after_the_last_is_revoked(registry: TenantRegistry) -> None:
    assert not registry.has_keys()
    key, _ = registry.create_key("acme", {Scope.GENERATE})
    registry.revoke_key(key.key_id)
    assert registry.has_keys()


def test_every_key_that_is_not_good_is_refused_in_the_same_words(registry: TenantRegistry, clock: Clock) -> None:
    registry.add_tenant(Tenant(name="gone"))
    _, disabled = registry.create_key("gone", {Scope.GENERATE})
    disable(registry, "gone")
    revoked_key, revoked = registry.create_key("acme", {Scope.GENERATE})
    registry.revoke_key(revoked_key.key_id)
    _, expired = registry.create_key("acme", {Scope.GENERATE}, expires_at=clock.now())
    _, good = registry.create_key("acme", {Scope.GENERATE})
    wrong = good[:-1] + ("0" if good[-1] != "0" else "1")
    told = set()
    for secret in [
        disabled,
        revoked,
        expired,
        wrong,
        "pp_zzzzzzzz_" + "0" * 64,
        "",
        "sk-1",
        "\0",
        "\ud800",
        "x" * 9999,
    ]:
        with pytest.raises(Unauthorized) as refused:
            authenticate(registry, secret)
        told.add(str(refused.value))
    assert len(told) == 1
    assert authenticate(registry, good).tenant == "acme"


def test_a_key_that_nobody_has_takes_the_same_steps_as_one_that_was_revoked(
    registry: TenantRegistry, database: Database
) -> None:
    key, revoked = registry.create_key("acme", {Scope.GENERATE})
    registry.revoke_key(key.key_id)
    statements: list[str] = []
    event.listen(database._engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    steps = []
    for secret in [revoked, "pp_zzzzzzzz_" + "0" * 64, "no key"]:
        statements.clear()
        with pytest.raises(Unauthorized):
            authenticate(registry, secret)
        steps.append(list(statements))
    assert steps[0] == steps[1] == steps[2]
    assert len(steps[0]) >= 2


def test_secrets_are_compared_in_constant_time(registry: TenantRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    compared: list[bool] = []
    compare = hmac.compare_digest

    def compare_and_note(one: str, other: str) -> bool:
        compared.append(compare(one, other))
        return compared[-1]

    monkeypatch.setattr(hmac, "compare_digest", compare_and_note)
    authenticate(registry, secret)
    for wrong in (secret[:-1] + ("0" if secret[-1] != "0" else "1"), "pp_zzzzzzzz_" + "0" * 64, "no key"):
        with pytest.raises(Unauthorized):
            authenticate(registry, wrong)
    assert compared == [True, False, False, False]


def test_a_proved_key_is_remembered_for_two_seconds(registry: TenantRegistry, database: Database, clock: Clock) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    assert registry.remembered(secret) is None
    proved = authenticate(registry, secret)
    clock.seconds = 1.9
    assert registry.remembered(secret) == Remembered(proved, is_due=True)
    assert authenticate(registry, secret) is proved
    clock.seconds = 2.0
    assert registry.remembered(secret) is None


def test_a_revoked_key_dies_at_once_here_and_within_two_seconds_elsewhere(
    registry: TenantRegistry, database: Database, clock: Clock
) -> None:
    elsewhere = a_registry(database, clock)
    key, secret = registry.create_key("acme", {Scope.GENERATE})
    authenticate(registry, secret)
    authenticate(elsewhere, secret)
    registry.revoke_key(key.key_id)
    with pytest.raises(Unauthorized):
        authenticate(registry, secret)
    authenticate(elsewhere, secret)
    clock.seconds = 2.0
    with pytest.raises(Unauthorized):
        authenticate(elsewhere, secret)


def test_a_key_dies_at_its_moment_remembered_or_not(registry: TenantRegistry, clock: Clock) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE}, expires_at=START + timedelta(seconds=1))
    authenticate(registry, secret)
    clock.seconds = 1.0
    assert registry.remembered(secret) is None
    with pytest.raises(Unauthorized):
        authenticate(registry, secret)


def test_a_tenants_new_limits_hold_at_once(registry: TenantRegistry) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    authenticate(registry, secret)
    registry.change_tenant("acme", lambda tenant: replace(tenant, limits=TenantLimits(max_tasks=1)))
    assert authenticate(registry, secret).limits.max_tasks == 1
    disable(registry, "acme")
    with pytest.raises(Unauthorized):
        authenticate(registry, secret)
    registry.change_tenant("acme", lambda _: ACME)
    assert authenticate(registry, secret).tenant == "acme"


def test_what_was_proved_while_a_key_was_being_revoked_is_not_remembered(database: Database, clock: Clock) -> None:
    principals = Principals(clock.monotonic)
    registry = TenantRegistry(database, principals=principals, now=clock.now)
    registry.add_tenant(ACME)
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    proved = authenticate(registry, secret)
    principals.forget()

    def prove_while_it_is_revoked() -> tuple[object, float]:
        principals.forget()
        return proved, 60.0

    principals.read("hash", prove_while_it_is_revoked)
    assert principals.get("hash") is None


def test_a_key_can_be_replaced_without_a_gap(registry: TenantRegistry) -> None:
    old, old_secret = registry.create_key("acme", {Scope.GENERATE})
    new, new_secret = registry.create_key("acme", {Scope.GENERATE})
    assert authenticate(registry, old_secret).tenant == authenticate(registry, new_secret).tenant
    registry.revoke_key(old.key_id)
    assert authenticate(registry, new_secret).key_id == new.key_id
    assert [key.revoked_at is None for key in registry.keys("acme")] == [False, True]


@pytest.mark.parametrize("key_id", ["zzzzzzzz", "", "\0", "\ud800"])
def test_a_key_that_is_not_there_cannot_be_revoked(registry: TenantRegistry, key_id: str) -> None:
    with pytest.raises(UnknownKey):
        registry.revoke_key(key_id)


def test_when_a_key_was_last_used_is_written_in_batches(
    registry: TenantRegistry, database: Database, clock: Clock
) -> None:
    key, secret = registry.create_key("acme", {Scope.GENERATE})
    clock.seconds = 1.0
    authenticate(registry, secret)
    clock.seconds = 1.5
    registry.remembered(secret)
    assert registry.keys("acme")[0].last_used_at is None
    registry.flush_last_used()
    assert registry.keys("acme")[0].last_used_at == START + timedelta(seconds=1.5)
    assert authenticate(a_registry(database, clock), secret).key_id == key.key_id


def test_a_last_use_that_could_not_be_written_is_written_next_time(
    registry: TenantRegistry, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    authenticate(registry, secret)

    def fail() -> None:
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as fault:
        fault.setattr(database, "writing", fail)
        with pytest.raises(StoreUnavailable):
            registry.flush_last_used()
    registry.flush_last_used()
    assert registry.keys("acme")[0].last_used_at == START


@pytest.mark.parametrize("change", ["tenant = 'zeta'", "scopes = 'operator'", "revoked_at = NULL", "expires_at = NULL"])
def test_a_damaged_key_opens_nothing(registry: TenantRegistry, database: Database, clock: Clock, change: str) -> None:
    registry.add_tenant(Tenant(name="zeta"))
    key, secret = registry.create_key("acme", {Scope.GENERATE}, expires_at=START + timedelta(seconds=60))
    registry.revoke_key(key.key_id)
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE api_keys SET {change}")
    with pytest.raises(CorruptRecord):
        authenticate(registry, secret)


def test_a_damaged_tenant_opens_nothing(registry: TenantRegistry, database: Database) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE tenants SET weight = 200.0")
    with pytest.raises(CorruptRecord):
        authenticate(registry, secret)


def test_what_is_damaged_hides_no_other_and_can_be_written_again(registry: TenantRegistry, database: Database) -> None:
    registry.add_tenant(Tenant(name="zeta"))
    sound, _ = registry.create_key("acme", {Scope.GENERATE})
    damaged, secret = registry.create_key("acme", {Scope.GENERATE})
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE tenants SET weight = 200.0 WHERE name = 'zeta'")
        connection.exec_driver_sql(f"UPDATE api_keys SET created_at = '?' WHERE key_id = '{damaged.key_id}'")
    assert [tenant.name for tenant in registry.tenants()] == ["acme"]
    assert registry.keys("acme") == [sound]
    registry.add_tenant(Tenant(name="zeta", weight=3.0))
    assert registry.tenant("zeta").weight == 3.0
    with pytest.raises(TenantExists):
        registry.add_tenant(Tenant(name="zeta"))
    assert registry.revoke_key(damaged.key_id).revoked_at is not None
    assert {key.key_id for key in registry.keys("acme")} == {sound.key_id, damaged.key_id}
    with pytest.raises(Unauthorized):
        authenticate(registry, secret)


class Outage:
    """A proof that cannot be had."""

    def __call__(self) -> tuple[Principal, float]:
        raise StoreUnavailable("the database is gone")


def test_a_key_that_was_good_stays_so_for_as_long_as_an_outage_may_last_and_it_is_valid(
    registry: TenantRegistry, clock: Clock
) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    proved = authenticate(registry, secret)
    principals = Principals(clock.monotonic, max_outage=60.0)
    principals.read("short", lambda: (proved, 10.0))
    principals.read("long", lambda: (proved, 1e9))
    clock.seconds = 9.0
    assert principals.get("short") is None
    assert principals.read("short", Outage()) is proved
    clock.seconds = 59.0
    assert principals.read("long", Outage()) is proved
    for seconds, secret_sha256 in ((10.0, "short"), (60.0, "long"), (0.0, "never seen")):
        clock.seconds = seconds
        with pytest.raises(StoreUnavailable):
            principals.read(secret_sha256, Outage())


def test_on_a_machine_of_its_own_no_key_outlives_what_proves_it(registry: TenantRegistry, clock: Clock) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    principals = Principals(clock.monotonic)
    proved = authenticate(registry, secret)
    principals.read("key", lambda: (proved, 1e9))
    clock.seconds = 2.0
    with pytest.raises(StoreUnavailable):
        principals.read("key", Outage())


def test_a_key_that_was_refused_is_not_good_again_in_an_outage(registry: TenantRegistry, clock: Clock) -> None:
    _, secret = registry.create_key("acme", {Scope.GENERATE})
    principals = Principals(clock.monotonic, max_outage=60.0)
    proved = authenticate(registry, secret)
    principals.read("key", lambda: (proved, 1e9))
    clock.seconds = 2.0

    def refuse() -> tuple[Principal, float]:
        raise Unauthorized

    for prove, error in ((refuse, Unauthorized), (Outage(), StoreUnavailable)):
        with pytest.raises(error):
            principals.read("key", prove)


def test_an_outage_does_not_bring_back_what_was_refused_while_it_was_waited_for(clock: Clock) -> None:
    principals = Principals(clock.monotonic, max_outage=60.0)
    principal = Principal(
        tenant="acme", scopes=frozenset({Scope.GENERATE}), key_id="k", weight=1.0, limits=TenantLimits()
    )
    principals.read("hash", lambda: (principal, math.inf))

    def refuse() -> tuple[Principal, float]:
        raise Unauthorized

    def hang_and_fail() -> tuple[Principal, float]:
        with pytest.raises(Unauthorized):
            principals.read("hash", refuse)
        raise StoreUnavailable("the registry failed")

    with pytest.raises(StoreUnavailable):
        principals.read("hash", hang_and_fail)
    assert principals.get("hash") is None
