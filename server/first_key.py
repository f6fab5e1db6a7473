"""Makes the first API key, where a server is started by a machine and nobody could make one before.

Knows the tenants' registry and one file. Knows nothing of the server.
"""

import contextlib
import os
from pathlib import Path

from prefix_store.disk import fsync_directory
from prefix_store.errors import TenantExists
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import LOCAL_TENANT, Scope, Tenant


def write_first_key(tenants: TenantRegistry, path: Path) -> None:
    """Make a key that opens everything, for the tenant whose tasks are everybody's while there is no key.

    Only the owner may read the file. Raises `OSError` where it is there already or cannot be made, and what the
    registry raises; there is no key then, and no file that would keep the next start from making one. Where the disk
    is full for the secret alone, the key is lost: another is made where the store is.
    """
    if path.is_file() and path.stat().st_size == 0:  # of a server that was killed before there was a key
        path.unlink()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        message = f"{path} is there, perhaps with the key of another store: the first key of this one needs a new file"
        raise FileExistsError(f"{message}; move it away, or set POLYPREFIX_FIRST_KEY_FILE") from None
    with os.fdopen(descriptor, "w") as file, contextlib.ExitStack() as undo:
        undo.callback(path.unlink)
        fsync_directory(path.parent)
        with contextlib.suppress(TenantExists):
            tenants.add_tenant(Tenant(name=LOCAL_TENANT))
        _, secret = tenants.create_key(LOCAL_TENANT, Scope)
        undo.pop_all()  # from here on there is a key, and the file has the only copy
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())
