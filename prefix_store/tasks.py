"""What the store says of a task: its versions, which of them is served, and its settings.

Plain frozen values. Knows nothing of how or where they are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prefix_store.prefix import Prefix


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """A task's settings, which stay when a new version is uploaded. The store keeps them and does not read them."""

    description: str = ""
    prompt_template: str | None = None
    chat_template: Mapping[str, str] | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The facts of one upload.

    `sha256` and `num_bytes` are those of the uploaded bytes, `native_sha256` and `num_native_bytes` those of the native
    file that is served; the two hashes are equal where the upload was native. `backbone` is the fingerprint that was
    served at upload; `backbone_checked` says whether the file named it itself. `created_at` is in UTC.
    """

    sha256: str
    native_sha256: str
    kind: str
    num_virtual_tokens: int
    num_bytes: int
    num_native_bytes: int
    backbone: str
    backbone_checked: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskVersion(Upload):
    """An upload as the task's version 1, 2, 3 …; `stale` when it was made for other weights than those served now.

    `quarantined` is why it was taken out of service, if it was.
    """

    version: int
    stale: bool
    quarantined: str | None = None

    @property
    def is_in_service(self) -> bool:
        return not self.stale and self.quarantined is None


Shares = tuple[tuple[TaskVersion, float], ...]  # versions that share a task's requests, each with its weight


@dataclass(frozen=True, slots=True)
class Task:
    """`tenant` is whose it is; `public` when every tenant may use it that has no task of this name itself.

    `traffic`: among which versions its requests are drawn, with their weights; empty where the served one gets all.
    """

    tenant: str
    task_id: str
    served_version: int
    versions: tuple[TaskVersion, ...]
    config: TaskConfig
    created_at: datetime
    public: bool
    traffic: Mapping[int, float] = field(default_factory=dict)

    @property
    def served(self) -> TaskVersion:
        return next(version for version in self.versions if version.version == self.served_version)

    @property
    def shares(self) -> Shares:
        """The versions of `traffic`."""
        return tuple((each, self.traffic[each.version]) for each in self.versions if each.version in self.traffic)


@dataclass(frozen=True, slots=True)
class Published:
    """`changed` is False when the version was there already, and was served as it is now."""

    version: TaskVersion
    config: TaskConfig
    created_task: bool
    changed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a request is bound to when it is admitted; a later replacement or deletion does not change it.

    `tenant` is whose task it is: not who asked, where it is a public one.
    """

    tenant: str
    task_id: str
    version: int
    prefix: Prefix
    config: TaskConfig
