"""What the operator's routes work on, and the audit log that every change is put into. Knows no route."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request

from prefix_store.home import Place
from prefix_store.prefix import BackboneShape, BackboneSpec
from prefix_store.store import PrefixStore
from prefix_store.upkeep import Damage
from server.access import principal_of
from server.audit import AuditLog
from server.http import request_id_of

# No prefix is read here, so the backbone that reads them plays no part.
NO_BACKBONE = BackboneSpec("", BackboneShape(n_layer=1, n_head=1, head_dim=1, n_positions=1), "")


@dataclass(frozen=True, slots=True)
class Administration:
    """`tell` is told of all damage that a look at the whole store has found."""

    store: PrefixStore
    audit: AuditLog
    tell: Callable[[Sequence[Damage]], None]


def administration_of(request: Request) -> Administration:
    administration: Administration = request.app.state.administration
    return administration


async def note(request: Request, action: str, **facts: object) -> None:
    """Put into the audit log what the request's caller has done."""
    audit = administration_of(request).audit
    await asyncio.to_thread(audit.record, principal_of(request), request_id_of(request), action, **facts)


def open_store(place: Place, registry: str | None = None) -> PrefixStore:
    """Raises `StoreInUse` while a server runs on a directory; a bucket can be shared with servers."""
    return PrefixStore(place, backbone=NO_BACKBONE, registry_url=registry)
