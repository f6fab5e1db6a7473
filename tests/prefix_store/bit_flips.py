"""Flips one bit of a store, in a file, in a record or anywhere in the registry's pages, and tells what was noticed.

Nothing that is not what was written may be served; and what was hit has to be found, by a scan or by a verification.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from prefix_store.errors import StoreError
from prefix_store.store import PrefixStore
from prefix_store.tenants import Scope, Tenant
from tests.prefix_store.durability import State, observe, opened, prepare
from tests.prefix_store.support import BACKBONE, publish

TABLES = {
    "tasks": ("tenant", "task_id", "served_version", "config", "public", "created_at", "checksum"),
    "versions": (
        "tenant", "task_id", "version", "sha256", "native_sha256", "kind", "num_virtual_tokens", "num_bytes",
        "num_native_bytes", "backbone", "backbone_checked", "created_at", "checksum",
    ),
    "tenants": ("name", "weight", "limits", "disabled", "created_at", "checksum"),
    "api_keys": ("key_id", "tenant", "secret_sha256", "scopes", "created_at", "checksum"),
}  # fmt: skip
TRUTHS = {"public", "backbone_checked", "disabled"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`is_found` by scan or verification, `is_harmless` when everything still reads as it was written."""

    is_found: bool
    is_harmless: bool
    served_wrong: list[str]


def prepare_for_flips(directory: Path) -> State:
    """A store with all kinds of files and records; what it has."""
    prepare(directory)
    with opened(directory) as store:
        store.tenants.add_tenant(Tenant(name="newcomer"))
        store.tenants.create_key("newcomer", {Scope.GENERATE})
        publish(store, "fresh", tenant="newcomer", seed=5)
        return observe(store)


def flip(template: Path, directory: Path, was: State, choice: random.Random, kind: str) -> Outcome:
    """Copy the store `template`, which holds `was`, to `directory`, hit that copy, and look."""
    shutil.copytree(template, directory)
    try:
        KINDS[kind](directory, choice)
        return _look(directory, was)
    finally:
        shutil.rmtree(directory)


def _look(directory: Path, was: State) -> Outcome:
    try:
        store = PrefixStore(directory, backbone=BACKBONE)
    except StoreError:
        return Outcome(is_found=True, is_harmless=False, served_wrong=[])
    try:
        seen, wrong = {}, []
        for task_id in ("poet", "clerk", "fresh"):
            try:
                seen |= observe(store, (task_id,))
            except StoreError:
                continue
            except AssertionError as error:
                wrong.append(str(error))
        wrong += [f"{name}: {found}" for name, found in seen.items() if found != was[name]]
        is_found = _is_found(store)
    finally:
        store.close()
    return Outcome(is_found, is_harmless=seen == was and not wrong, served_wrong=wrong)


def _is_found(store: PrefixStore) -> bool:
    try:
        return bool(store.upkeep.verify())
    except StoreError:
        return True


def _flip_in(body: bytes, choice: random.Random) -> bytes:
    position, bit = choice.randrange(len(body)), choice.randrange(8)
    return body[:position] + bytes([body[position] ^ (1 << bit)]) + body[position + 1 :]


def _flip_a_file(directory: Path, choice: random.Random) -> None:
    path = choice.choice(sorted(directory.glob("*/*")))
    path.write_bytes(_flip_in(path.read_bytes(), choice))


def _flip_a_page(directory: Path, choice: random.Random) -> None:
    path = directory / "registry.sqlite3"
    path.write_bytes(_flip_in(path.read_bytes(), choice))


def _flip_a_record(directory: Path, choice: random.Random) -> None:
    table = choice.choice(list(TABLES))
    column = choice.choice(TABLES[table])
    with closing(sqlite3.connect(directory / "registry.sqlite3", isolation_level=None)) as connection:
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        rowid, value = choice.choice(rows)
        if isinstance(value, str):
            new, written = _flip_in(value.encode(), choice), "CAST(? AS TEXT)"
        else:
            # Any bit but the last of a truth that holds leaves it as true as it was.
            new, written = (int(value) ^ (1 << choice.randrange(1 if column in TRUTHS else 31))), "?"
        connection.execute(f"UPDATE {table} SET {column} = {written} WHERE rowid = ?", (new, rowid))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "file": _flip_a_file,
    "record": _flip_a_record,
    "page": _flip_a_page,
}
