"""Checksums of the registry's rows: a row that is not what was written is found when it is read.

Knows tables and rows. Knows nothing of what they mean.
"""

import hashlib
import json
from collections.abc import Mapping

from sqlalchemy import Connection, Row, RowMapping, Table, select

from prefix_store.errors import CorruptRecord
from prefix_store.schema import api_keys, tasks

AnyRow = Row[tuple[object, ...]]
Values = Mapping[str, object] | RowMapping  # of one row, by column

# Written in batches, many rows at a time, and of no weight: who may do what does not depend on it.
_NOT_COVERED = {"checksum", api_keys.c.last_used_at.name}
# Columns that a later migration added count only where they are set. So the rows of before need no new seal, and in a
# fleet an older release that still runs reads and writes rows without them.
_ADDED = {tasks.c.traffic.name}


def sealed(table: Table, values: Values) -> dict[str, object]:
    """A whole row's values, with their checksum."""
    return {**values, "checksum": _checksum(table, values)}


def checked(table: Table, row: AnyRow) -> AnyRow:
    """The row itself; raises `CorruptRecord` where it is not what was sealed."""
    check(table, row._mapping)
    return row


def check(table: Table, values: Values) -> None:
    """As `checked`, for a row's values."""
    if not is_sound(table, values):
        raise CorruptRecord(table.name, key_of(table, values))


def is_sound(table: Table, values: Values) -> bool:
    return _checksum(table, values) == values["checksum"]


def key_of(table: Table, values: Values) -> str:
    return "/".join(ascii(values[column.name]).strip("'") for column in table.primary_key)


def resealed(table: Table, row: AnyRow, changes: Mapping[str, object]) -> dict[str, object]:
    """The row's values with `changes` made; raises `CorruptRecord` rather than put a new seal on a damaged row."""
    return sealed(table, {**checked(table, row)._mapping, **changes})


def damaged_records(connection: Connection, table: Table) -> list[CorruptRecord]:
    """The table's rows that are not what was written."""
    rows = connection.execute(select(table)).mappings()
    return [CorruptRecord(table.name, key_of(table, row)) for row in rows if not is_sound(table, row)]


def _checksum(table: Table, values: Values) -> str:
    covered = [values[column.name] for column in table.columns if _is_covered(column.name, values)]
    return hashlib.sha256(json.dumps([table.name, *covered], default=repr).encode()).hexdigest()


def _is_covered(name: str, values: Values) -> bool:
    return name not in _NOT_COVERED and not (name in _ADDED and values[name] is None)
