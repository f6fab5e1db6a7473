"""What can go wrong with prefixes and their store, as one small tree. Knows nothing of HTTP.

The caller's mistakes: `InvalidPrefix`, `InvalidTaskId`, `UnknownTask`, `UnknownVersion`, `StaleVersion`,
`PreconditionFailed`. The machine's: `OutOfSpace`, `StoreUnavailable`, `CorruptPrefix`.
"""


class StoreError(Exception):
    """The root of the tree; never raised itself."""


class InvalidPrefix(StoreError):
    """Bytes that are no prefix of this backbone; the message says what was wrong and what was expected."""


class InvalidTaskId(StoreError):
    """A name that no task can have."""


class UnknownTask(StoreError):
    def __init__(self, task_id: str) -> None:
        super().__init__(f"no task {task_id!r}")
        self.task_id = task_id


class UnknownVersion(StoreError):
    def __init__(self, task_id: str, version: int) -> None:
        super().__init__(f"task {task_id!r} has no version {version}")
        self.task_id = task_id
        self.version = version


class StaleVersion(StoreError):
    """The version was made for other weights than those that are served now."""

    def __init__(self, task_id: str, version: int, made_for: str, served: str) -> None:
        super().__init__(
            f"version {version} of task {task_id!r} was uploaded for the backbone {made_for[:12]}…, "
            f"this server runs {served[:12]}…: train it again on this backbone and upload that"
        )
        self.task_id = task_id
        self.version = version


class PreconditionFailed(StoreError):
    """`If-Match` or `If-None-Match` did not hold; `actual` is the served version's sha256, None where no task is."""

    def __init__(self, expected: str, actual: str | None) -> None:
        super().__init__(f"expected {expected}, found {actual or 'no task'}: somebody else changed it, look again")
        self.expected = expected
        self.actual = actual


class OutOfSpace(StoreError):
    """The disk is full; nothing was kept."""


class StoreUnavailable(StoreError):
    """The disk or the registry failed; nothing was answered for."""


class CommitUncertain(StoreUnavailable):
    """The registry failed while it committed: what was asked for may have happened or not, whole in either case."""


class CorruptPrefix(StoreError):
    """A stored file is gone, or is not what was stored. Other files, and their tasks, are not concerned."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"the stored file {name} {what}; upload it again to repair it")
        self.name = name
