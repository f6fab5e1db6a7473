"""Whatever tenants and operators do to a store, in whatever order, it has what a few dictionaries would have.

Driven by hypothesis; the long form is in `tests/torture`.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from prefix_store.errors import (
    PreconditionFailed,
    PublicNameTaken,
    Quarantined,
    QuotaExceeded,
    StoreError,
    UnknownTask,
    UnknownVersion,
)
from prefix_store.names import file_key
from prefix_store.tasks import Served, TaskConfig
from prefix_store.tenants import Tenant, TenantLimits
from tests.prefix_store.homes import DirectoryHome, FleetHome, Home
from tests.prefix_store.support import keys_and_values, native_file

T = TypeVar("T")

TENANTS = ("acme", "zeta")
TASK_IDS = ("poet", "clerk")
NATIVES = [native_file(seed) for seed in range(4)]
VALUES = [keys_and_values(seed) for seed in range(4)]

tenants, task_ids = st.sampled_from(TENANTS), st.sampled_from(TASK_IDS)
numbers = st.integers(1, 4)
NO_CONDITION, MATCHES, MATCHES_NOT, MUST_BE_NEW = "none", "matches", "matches not", "must be new"


@dataclass
class Version:
    upload: bytes
    seed: int
    quarantined: bool = False

    @property
    def num_bytes(self) -> int:
        """All its files: a text has one of its own beside the native one."""
        return len(self.upload) + (0 if self.upload == NATIVES[self.seed] else len(NATIVES[self.seed]))


@dataclass
class Model:
    """A task as it should be."""

    versions: list[Version] = field(default_factory=list)
    served: int = 0
    description: str = ""
    public: bool = False
    traffic: dict[int, float] = field(default_factory=dict)

    def drawn(self, draw: float) -> int:
        """The version of a request that drew this number."""
        shares = [(number, weight) for number, weight in self.traffic.items() if not self.is_bad(number)]
        point = draw * sum(weight for _, weight in shares)
        for number, weight in shares:
            if point < weight:
                return number
            point -= weight
        return self.served

    def is_bad(self, number: int) -> bool:
        return self.versions[number - 1].quarantined


class StoreMachine(RuleBasedStateMachine):
    def new_home(self) -> Home:
        return DirectoryHome(Path(tempfile.mkdtemp()))

    def __init__(self) -> None:
        super().__init__()
        self.home = self.new_home()
        self.store = self.home.open(cache_bytes=2 * VALUES[0].nbytes)
        self.tasks: dict[tuple[str, str], Model] = {}
        self.limits = dict.fromkeys(TENANTS, TenantLimits())
        self.pinned: list[tuple[Served, int, str]] = []  # what a request holds, its prefix's seed, its description
        for tenant in TENANTS:
            self.store.tenants.add_tenant(Tenant(name=tenant))

    # ------------------------------------------------------------ what a tenant does

    @rule(
        tenant=tenants,
        task_id=task_ids,
        seed=st.integers(0, 3),
        is_text=st.booleans(),
        serve=st.booleans(),
        condition=st.sampled_from([NO_CONDITION, NO_CONDITION, MATCHES, MATCHES_NOT, MUST_BE_NEW]),
    )
    def upload(self, tenant: str, task_id: str, seed: int, is_text: bool, serve: bool, condition: str) -> None:
        version = Version(b'{"text": "%d"}' % seed if is_text else NATIVES[seed], seed)
        task = self.tasks.get((tenant, task_id))
        expected = self._refusal(tenant, task, version, condition)
        published = self._attempt(
            expected,
            lambda: self.store.publish(
                tenant,
                task_id,
                upload=version.upload,
                native=NATIVES[seed],
                kind="text" if is_text else "prefix",
                num_virtual_tokens=3,
                backbone_checked=True,
                serve=serve,
                if_match=self._if_match(task, condition),
                if_none_match=condition == MUST_BE_NEW,
            ),
        )
        if published is None:
            return
        assert published.created_task == (task is None)
        task = self.tasks.setdefault((tenant, task_id), Model())
        before = (task.served, task.traffic, [each.quarantined for each in task.versions])
        same = _place(task, version)
        if same is None:
            task.versions.append(version)
            same = len(task.versions) - 1
        if serve or published.created_task:
            task.served, task.traffic = same + 1, {}
        task.versions[same].quarantined = False
        assert published.version.version == same + 1
        assert published.changed == (
            before != (task.served, task.traffic, [each.quarantined for each in task.versions])
        )

    @rule(
        tenant=tenants,
        task_id=task_ids,
        number=numbers,
        condition=st.sampled_from([NO_CONDITION, MATCHES, MATCHES_NOT]),
    )
    def roll_back(self, tenant: str, task_id: str, number: int, condition: str) -> None:
        task = self.tasks.get((tenant, task_id))
        expected = _first(
            (UnknownTask, task is None),
            (PreconditionFailed, condition == MATCHES_NOT),
            (UnknownVersion, task is not None and number > len(task.versions)),
            (Quarantined, task is not None and number <= len(task.versions) and task.versions[number - 1].quarantined),
        )
        if_match = self._if_match(task, condition)
        if self._attempt(expected, lambda: self.store.patch(tenant, task_id, version=number, if_match=if_match)):
            self.tasks[tenant, task_id].served = number
            self.tasks[tenant, task_id].traffic = {}

    @rule(tenant=tenants, task_id=task_ids, traffic=st.dictionaries(numbers, st.sampled_from([0.25, 1, 3]), max_size=3))
    def split(self, tenant: str, task_id: str, traffic: dict[int, float]) -> None:
        task = self.tasks.get((tenant, task_id))
        first_wrong = next(
            (n for n in traffic if task is not None and (n > len(task.versions) or task.is_bad(n))), None
        )
        expected = _first(
            (UnknownTask, task is None),
            (UnknownVersion, task is not None and first_wrong is not None and first_wrong > len(task.versions)),
            (Quarantined, first_wrong is not None),
        )
        if self._attempt(expected, lambda: self.store.patch(tenant, task_id, traffic=traffic)):
            self.tasks[tenant, task_id].traffic = dict(sorted(traffic.items()))

    @rule(tenant=tenants, task_id=task_ids, description=st.text(max_size=5), public=st.none() | st.booleans())
    def configure(self, tenant: str, task_id: str, description: str, public: bool | None) -> None:
        task = self.tasks.get((tenant, task_id))
        is_taken = any(each.public for (owner, name), each in self.tasks.items() if name == task_id and owner != tenant)
        expected = _first((UnknownTask, task is None), (PublicNameTaken, bool(public) and is_taken))
        config = TaskConfig(description=description)
        if self._attempt(
            expected, lambda: self.store.patch(tenant, task_id, change_config=lambda _: config, public=public)
        ):
            task = self.tasks[tenant, task_id]
            task.description = description
            task.public = task.public if public is None else public

    @rule(tenant=tenants, task_id=task_ids, condition=st.sampled_from([NO_CONDITION, MATCHES, MATCHES_NOT]))
    def delete(self, tenant: str, task_id: str, condition: str) -> None:
        task = self.tasks.get((tenant, task_id))
        expected = _first((UnknownTask, task is None), (PreconditionFailed, condition == MATCHES_NOT))
        if_match = self._if_match(task, condition)
        self._attempt(expected, lambda: self.store.delete(tenant, task_id, if_match))
        if expected is None:
            del self.tasks[tenant, task_id]

    @rule(tenant=tenants, task_id=task_ids, draw=st.sampled_from([0.0, 0.3, 0.6, 0.95]))
    def begin_a_request(self, tenant: str, task_id: str, draw: float) -> None:
        task = self._visible(tenant, task_id)
        if task is not None and not task.is_bad(task.drawn(draw)):
            served = self.store.get(tenant, task_id, draw)
            self.pinned.append((served, task.versions[task.drawn(draw) - 1].seed, task.description))

    @precondition(lambda self: self.pinned)
    @rule()
    def end_the_oldest_request(self) -> None:
        self.pinned.pop(0)

    # ------------------------------------------------------------ what an operator does

    @rule(tenant=tenants, task_id=task_ids, number=numbers)
    def quarantine(self, tenant: str, task_id: str, number: int) -> None:
        task = self.tasks.get((tenant, task_id))
        expected = _first(
            (UnknownTask, task is None), (UnknownVersion, task is not None and number > len(task.versions))
        )
        if self._attempt(expected, lambda: self.store.quarantine(tenant, task_id, number, "it fails")):
            self.tasks[tenant, task_id].versions[number - 1].quarantined = True

    @rule(tenant=tenants, max_tasks=st.integers(0, 2), max_prefixes=st.integers(0, 5))
    def limit(self, tenant: str, max_tasks: int, max_prefixes: int) -> None:
        self.limits[tenant] = TenantLimits(max_tasks=max_tasks, max_bytes=max_prefixes * len(NATIVES[0]))
        self.store.tenants.change_tenant(tenant, lambda _: Tenant(name=tenant, limits=self.limits[tenant]))

    @rule()
    def collect_garbage(self) -> None:
        self.home.write(f"acme/{'0' * 64}.upload", b"12345")
        assert self.store.upkeep.sweep(older_than=timedelta(seconds=-60)) == 5

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.home.open(cache_bytes=2 * VALUES[0].nbytes)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def every_tenant_sees_its_tasks_and_the_public_ones(self) -> None:
        for tenant in TENANTS:
            visible = {task_id: self._visible(tenant, task_id) for task_id in TASK_IDS}
            listed = {task.task_id: task for task in self.store.tasks(tenant)}
            assert set(listed) == {task_id for task_id, task in visible.items() if task is not None}
            for task_id, found in listed.items():
                task = visible[task_id]
                assert task is not None
                assert (found.served_version, found.traffic, found.public) == (task.served, task.traffic, task.public)
                assert found.config.description == task.description
                assert [version.sha256 for version in found.versions] == [_sha256(each) for each in task.versions]
                quarantined = [version.quarantined is not None for version in found.versions]
                assert quarantined == [version.quarantined for version in task.versions]

    @invariant()
    def every_task_serves_its_version_or_says_why_not(self) -> None:
        for tenant in TENANTS:
            for task_id in TASK_IDS:
                for draw in (0.0, 0.9):
                    self._serves_its_version_or_says_why_not(tenant, task_id, draw)

    def _serves_its_version_or_says_why_not(self, tenant: str, task_id: str, draw: float) -> None:
        task = self._visible(tenant, task_id)
        version = 0 if task is None else task.drawn(draw)
        expected = _first((UnknownTask, task is None), (Quarantined, task is not None and task.is_bad(version)))
        served = self._attempt(expected, lambda: self.store.get(tenant, task_id, draw))
        if task is None or served is None:
            assert self.store.cached(tenant, task_id, draw) is None
            return
        assert (served.version, served.config.description) == (version, task.description)
        assert torch.equal(served.prefix.past_key_values, VALUES[task.versions[version - 1].seed])
        cached = self.store.cached(tenant, task_id, draw)
        assert cached is not None
        assert cached.prefix is served.prefix

    @invariant()
    def what_was_uploaded_comes_back_byte_for_byte(self) -> None:
        for (tenant, task_id), task in self.tasks.items():
            assert self.store.upload_bytes(tenant, task_id)[0] == task.versions[task.served - 1].upload

    @invariant()
    def who_holds_a_prefix_holds_what_it_began_with(self) -> None:
        for served, seed, description in self.pinned:
            assert torch.equal(served.prefix.past_key_values, VALUES[seed])
            assert served.config.description == description

    @invariant()
    def the_folder_has_what_is_needed_and_nothing_else(self) -> None:
        needed = {file_key(tenant, file.name) for tenant, file in self.store.upkeep._needed_files()}
        assert self.home.files() == needed
        assert self.store.upkeep.scan() == []
        assert self.store.stats.num_bytes <= 2 * VALUES[0].nbytes

    def teardown(self) -> None:
        assert self.store.upkeep.verify() == []
        self.store.close()
        if isinstance(self.home, DirectoryHome):
            shutil.rmtree(self.home.path)

    # ------------------------------------------------------------ the model's rules

    def _visible(self, tenant: str, task_id: str) -> Model | None:
        own = self.tasks.get((tenant, task_id))
        public = [task for (_, name), task in self.tasks.items() if name == task_id and task.public]
        return own or next(iter(public), None)

    def _refusal(self, tenant: str, task: Model | None, version: Version, condition: str) -> type[StoreError] | None:
        """Why an upload must be refused; None where it must not."""
        is_new = task is None or _place(task, version) is None
        own = [each for (owner, _), each in self.tasks.items() if owner == tenant]
        num_bytes = version.num_bytes + sum(kept.num_bytes for each in own for kept in each.versions)
        limits = self.limits[tenant]
        return _first(
            (PreconditionFailed, condition == MUST_BE_NEW and task is not None),
            (PreconditionFailed, condition == MATCHES_NOT or (condition == MATCHES and task is None)),
            (QuotaExceeded, task is None and len(own) + 1 > limits.max_tasks),
            (QuotaExceeded, is_new and num_bytes > limits.max_bytes),
        )

    def _if_match(self, task: Model | None, condition: str) -> str | None:
        if condition == MATCHES:
            return "*" if task is None else _sha256(task.versions[task.served - 1])
        return "0" * 64 if condition == MATCHES_NOT else None

    def _attempt(self, expected: type[StoreError] | None, change: Callable[[], T]) -> T | None:
        """What it returns; None where it was refused as expected."""
        try:
            result = change()
        except StoreError as error:
            if type(error) is not expected:
                raise AssertionError(f"{error!r}, expected {expected}") from error
            return None
        assert expected is None, f"expected {expected}"
        return result


def _place(task: Model, version: Version) -> int | None:
    """Where the task has a version of the same bytes."""
    return next((i for i, each in enumerate(task.versions) if each.upload == version.upload), None)


def _first(*refusals: tuple[type[StoreError], bool]) -> type[StoreError] | None:
    return next((error for error, holds in refusals if holds), None)


def _sha256(version: Version) -> str:
    return hashlib.sha256(version.upload).hexdigest()


class TestStore(StoreMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=10, stateful_step_count=25, deadline=None)


@pytest.mark.fleet
def test_a_store_in_a_bucket(new_fleet: Callable[[], FleetHome]) -> None:
    class FleetMachine(StoreMachine):
        def new_home(self) -> Home:
            return new_fleet()

    run_state_machine_as_test(FleetMachine, settings=settings(max_examples=5, stateful_step_count=20, deadline=None))
