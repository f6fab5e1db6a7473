"""Which names are allowed: a task's id, and the folder of a tenant. Knows nothing of files or tables."""

import hashlib
import re

from prefix_store.errors import InvalidTaskId, shown

RESERVED_TASK_IDS = frozenset({"base", "tgi"})  # both mean the bare backbone, in our dialect and in others
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OTHER_FILES = frozenset({"lock", "first-key"})  # that a store's directory holds beside the tenants' folders
_PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def is_task_id(task_id: str) -> bool:
    return _TASK_ID.fullmatch(task_id) is not None


def check_task_id(task_id: str) -> None:
    """Raise `InvalidTaskId` unless `task_id` can be a task's id."""
    if not is_task_id(task_id):
        raise InvalidTaskId(
            f"'{shown(task_id)}' is no task id: expected 1 to 128 letters, digits, '.', '_' or '-', "
            "the first a letter or a digit"
        )


def check_new_task_id(task_id: str, backbone_name: str) -> None:
    """As `check_task_id`, and refuse the names that already mean the bare backbone."""
    check_task_id(task_id)
    if task_id in RESERVED_TASK_IDS or task_id == backbone_name:
        raise InvalidTaskId(f"'{shown(task_id)}' means the bare backbone, so no task can have that name")


def tenant_folder(tenant: str) -> str:
    """A folder name for any tenant's name: safe on any file system, and never the same for two tenants.

    Plain names stay readable. Others, upper case included since some file systems fold case, become `~` and a hash;
    no plain name starts with `~`.
    """
    if _PLAIN_FOLDER.fullmatch(tenant) and tenant not in _OTHER_FILES:
        return tenant
    return "~" + hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()


def file_key(tenant: str, name: str) -> str:
    """Where a tenant's file is, below the store's own place."""
    return f"{tenant_folder(tenant)}/{name}"
