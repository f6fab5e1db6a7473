"""What can go wrong with prefixes and their store, as one small tree. Knows nothing of HTTP.

The caller's mistakes: `InvalidPrefix`, `InvalidTaskId`, `UnknownTask`, `UnknownVersion`, `StaleVersion`,
`PreconditionFailed`, `QuotaExceeded`, `Unauthorized`, and `PublicNameTaken`, `InvalidTenant`, `UnknownTenant`,
`TenantExists` and `UnknownKey` of an operator. The machine's: `OutOfSpace`, `StoreUnavailable`, `CommitUncertain`,
`CorruptPrefix`, `CorruptRecord`, `Quarantined`, `NameTaken`, and at opening `StoreInUse`, `UnsuitablePlace` and
`SchemaTooNew`.
"""

MAX_SHOWN = 64


def shown(text: str) -> str:
    """What somebody sent, as far as an error repeats it: escaped, so on one line, and at most 64 characters."""
    escaped = ascii(text)[1:-1]
    return escaped if len(escaped) <= MAX_SHOWN else escaped[: MAX_SHOWN - 1] + "…"


class StoreError(Exception):
    """The root of the tree; never raised itself."""


class InvalidPrefix(StoreError):
    """Bytes that are no prefix of this backbone; the message says what was wrong and what was expected."""


class InvalidTaskId(StoreError):
    """A name that no task can have."""


class UnknownTask(StoreError):
    def __init__(self, task_id: str) -> None:
        super().__init__(f"no task '{shown(task_id)}'")
        self.task_id = task_id


class UnknownVersion(StoreError):
    def __init__(self, task_id: str, version: int) -> None:
        super().__init__(f"task '{shown(task_id)}' has no version {version}")
        self.task_id = task_id
        self.version = version


class StaleVersion(StoreError):
    """The version was made for other weights than those that are served now."""

    def __init__(self, task_id: str, version: int, made_for: str, served: str) -> None:
        super().__init__(
            f"version {version} of task '{shown(task_id)}' was uploaded for the backbone {made_for[:12]}…, "
            f"this server runs {served[:12]}…: train it again on this backbone and upload that"
        )
        self.task_id = task_id
        self.version = version


class PreconditionFailed(StoreError):
    """`If-Match` or `If-None-Match` did not hold; `actual` is the served version's sha256, None where no task is."""

    def __init__(self, expected: str, actual: str | None) -> None:
        found = actual or "no task"
        super().__init__(f"expected {shown(expected)}, found {found}: somebody else changed it, look again")
        self.expected = expected
        self.actual = actual


class QuotaExceeded(StoreError):
    """A tenant would have more than its limit; nothing was kept. `what` is "tasks" or "bytes"."""

    def __init__(self, tenant: str, what: str, wanted: int, limit: int) -> None:
        super().__init__(f"this would make {wanted} {what}, and {tenant!r} may have {limit}: delete what is not needed")
        self.tenant = tenant
        self.what = what
        self.wanted = wanted
        self.limit = limit


class PublicNameTaken(StoreError):
    def __init__(self, task_id: str, owner: str) -> None:
        super().__init__(f"'{shown(task_id)}' is already public as a task of {owner!r}; one name means one public task")
        self.task_id = task_id
        self.owner = owner


class InvalidTenant(StoreError):
    """A name, a weight or a limit that no tenant can have, or a key's scopes that mean nothing."""


class UnknownTenant(StoreError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no tenant '{shown(name)}'")
        self.name = name


class TenantExists(StoreError):
    def __init__(self, name: str) -> None:
        super().__init__(f"there is a tenant '{shown(name)}' already")
        self.name = name


class UnknownKey(StoreError):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key '{shown(key_id)}'")
        self.key_id = key_id


class Unauthorized(StoreError):
    """No key that is good now. Unknown, wrong, expired, revoked or of a disabled tenant: it never says which."""

    def __init__(self) -> None:
        super().__init__("no valid API key; send one as 'Authorization: Bearer pp_…'")


class OutOfSpace(StoreError):
    """The disk is full; nothing was kept."""


class StoreUnavailable(StoreError):
    """The disk or the registry failed; nothing was answered for."""


class CommitUncertain(StoreUnavailable):
    """The registry failed while it committed: what was asked for may have happened or not, whole in either case."""


class NameTaken(StoreUnavailable):
    """A new file has the name of another one; nothing was written. The next try takes another name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a file {name} already; try again")


class CorruptPrefix(StoreError):
    """A stored file is gone, or is not what was stored. Other files, and their tasks, are not concerned."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"the stored file {name} {what}; upload it again to repair it")
        self.name = name


class CorruptRecord(StoreError):
    """A row of the registry is not what was written. Other rows, and their tasks, are not concerned."""

    def __init__(self, table: str, key: str) -> None:
        super().__init__(
            f"the record of {key} in {table} is damaged: delete it and write it again, or restore a backup"
        )
        self.table = table
        self.key = key


class Quarantined(StoreError):
    """The version was taken out of service; `reason` says why."""

    def __init__(self, task_id: str, version: int, reason: str) -> None:
        super().__init__(
            f"version {version} of task '{shown(task_id)}' is quarantined ({reason}): "
            "upload it again or serve another version"
        )
        self.task_id = task_id
        self.version = version
        self.reason = reason


class StoreInUse(StoreError):
    """Another process has the directory open."""


class UnsuitablePlace(StoreError):
    """Where no store can be kept; the message says why, and what to give instead."""


class SchemaTooNew(StoreError):
    def __init__(self, found: str, newest: str) -> None:
        super().__init__(
            f"the registry has schema {found} and this release knows up to {newest}: "
            "a newer release wrote it, so run that one, or restore a backup made before it"
        )
        self.found = found
        self.newest = newest
