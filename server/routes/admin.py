"""The operator's routes: tenants and their keys, what was used, and the store's upkeep."""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from prefix_store.backup import Copied
from prefix_store.tenants import LOCAL_TENANT, ApiKey, Scope, Tenant, TenantLimits
from server.access import Needs
from server.admin_schemas import (
    BackupAnswer,
    BackupBody,
    DamageAnswer,
    KeyAnswer,
    KeyBody,
    KeysAnswer,
    NewKeyAnswer,
    SweepAnswer,
    TenantAnswer,
    TenantBody,
    TenantPatch,
    TenantsAnswer,
    UsageAnswer,
    VerifyAnswer,
    daily_usage,
)
from server.administration import Administration, administration_of, note
from server.errors import InvalidValue
from server.http import no_key_twice, read_json
from server.openapi import errors, json_body

router = APIRouter(
    prefix="/admin", tags=["admin"], dependencies=[Depends(Needs(Scope.OPERATOR)), Depends(no_key_twice)]
)

MAX_BODY_BYTES = 64 << 10
READING = errors(401, 403, 404, 422, 424, 500, 503)
WRITING = errors(400, 401, 403, 404, 408, 412, 413, 415, 422, 424, 500, 503, 507)
TenantName = Annotated[str, Query(max_length=128)]


@router.get("/tenants", responses={200: {"model": TenantsAnswer}, **READING})
async def list_tenants(request: Request) -> Response:
    tenants = await asyncio.to_thread(administration_of(request).store.tenants.tenants)
    return _json(TenantsAnswer(tenants=[_tenant(tenant) for tenant in tenants]))


@router.post(
    "/tenants",
    responses={201: {"model": TenantAnswer}, **WRITING},
    openapi_extra=json_body(TenantBody),
    status_code=201,
)
async def add_tenant(request: Request) -> Response:
    administration = administration_of(request)
    body = await read_json(request, TenantBody, MAX_BODY_BYTES)
    limits = {} if body.limits is None else body.limits.model_dump(exclude_unset=True)
    tenant = Tenant(name=body.name, weight=body.weight, limits=TenantLimits(**limits))
    await asyncio.to_thread(administration.store.tenants.add_tenant, tenant)
    await note(request, "tenant.add", name=tenant.name)
    return _json(_tenant(tenant), 201)


@router.patch(
    "/tenants/{name}", responses={200: {"model": TenantAnswer}, **WRITING}, openapi_extra=json_body(TenantPatch)
)
async def set_tenant(request: Request, name: str) -> Response:
    """What is given is set, the rest stays."""
    administration = administration_of(request)
    patch = await read_json(request, TenantPatch, MAX_BODY_BYTES)
    tenant = await asyncio.to_thread(_set_tenant, administration, name, patch)
    await note(request, "tenant.set", name=name, **patch.model_dump(exclude_unset=True))
    return _json(_tenant(tenant))


@router.get("/keys", responses={200: {"model": KeysAnswer}, **READING})
async def list_keys(request: Request, tenant: TenantName) -> Response:
    tenants = administration_of(request).store.tenants
    await asyncio.to_thread(tenants.tenant, tenant)  # raises for an unknown one
    keys = await asyncio.to_thread(tenants.keys, tenant)
    return _json(KeysAnswer(keys=[_key(key) for key in keys]))


@router.post(
    "/keys", responses={201: {"model": NewKeyAnswer}, **WRITING}, openapi_extra=json_body(KeyBody), status_code=201
)
async def create_key(request: Request) -> Response:
    """The answer is the only one that ever holds the key's secret."""
    administration = administration_of(request)
    body = await read_json(request, KeyBody, MAX_BODY_BYTES)
    expires_at = None if body.expires_at is None else _moment(body.expires_at)
    create = administration.store.tenants.create_key
    key, secret = await asyncio.to_thread(create, body.tenant, [Scope(scope) for scope in body.scopes], expires_at)
    await note(request, "key.create", name=key.tenant, created_key_id=key.key_id, scopes=sorted(key.scopes))
    return _json(NewKeyAnswer(**_key(key).model_dump(), secret=secret), 201)


@router.delete("/keys/{key_id}", responses={200: {"model": KeyAnswer}, **READING, **errors(507)})
async def revoke_key(request: Request, key_id: str) -> Response:
    key = await asyncio.to_thread(administration_of(request).store.tenants.revoke_key, key_id)
    await note(request, "key.revoke", revoked_key_id=key_id)
    return _json(_key(key))


@router.get("/usage", responses={200: {"model": UsageAnswer}, **READING})
async def usage(request: Request, tenant: TenantName) -> Response:
    """By task and day, as far as it is written down, which it is every few seconds."""
    store = administration_of(request).store

    def write() -> Response:
        used = store.usage.by_day(tenant)
        if not used and tenant != LOCAL_TENANT:
            store.tenants.tenant(tenant)  # raises where there is none: a mistyped name has not used nothing
        return _json(daily_usage(used))

    return await asyncio.to_thread(write)


@router.post("/verify", responses={200: {"model": VerifyAnswer}, **READING, **errors(507)})
async def verify(request: Request) -> Response:
    """Read every stored file and record; versions whose file is damaged are quarantined."""
    administration = administration_of(request)
    found = await asyncio.to_thread(administration.store.upkeep.verify)
    administration.tell(found)
    await note(request, "store.verify", num_damaged=len(found))
    return _json(VerifyAnswer(damage=[DamageAnswer(where=each.where, what=each.what) for each in found]))


@router.post("/sweep", responses={200: {"model": SweepAnswer}, **READING})
async def sweep(request: Request) -> Response:
    """Remove files that no record needs."""
    num_bytes = await asyncio.to_thread(administration_of(request).store.upkeep.sweep)
    await note(request, "store.sweep", num_bytes=num_bytes)
    return _json(SweepAnswer(num_bytes=num_bytes))


@router.post("/backup", responses={200: {"model": BackupAnswer}, **WRITING}, openapi_extra=json_body(BackupBody))
async def backup(request: Request) -> Response:
    """Copy the registry and the files it needs to a new directory on the server's machine.

    A file that is missing is left out and told; `verify` says whose it is.
    """
    administration = administration_of(request)
    path = (await read_json(request, BackupBody, MAX_BODY_BYTES)).path
    copied = await asyncio.to_thread(_back_up, administration, Path(path))
    await note(request, "store.backup", path=path)
    return _json(BackupAnswer(path=path, num_files=copied.num_files, left_out=copied.left_out))


def _back_up(administration: Administration, path: Path) -> Copied:
    try:
        is_new = "\0" not in str(path) and path.is_absolute() and not path.exists()
    except OSError:  # too long, or forbidden
        is_new = False
    if not is_new:
        raise InvalidValue("path: expected an absolute one, where nothing is yet")
    return administration.store.upkeep.backup(path)


def _set_tenant(administration: Administration, name: str, patch: TenantPatch) -> Tenant:
    given: dict[str, Any] = patch.model_dump(exclude_none=True, exclude={"limits"})
    limits = {} if patch.limits is None else patch.limits.model_dump(exclude_unset=True)
    return administration.store.tenants.change_tenant(
        name, lambda tenant: replace(tenant, **given, limits=replace(tenant.limits, **limits))
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise InvalidValue("expires_at: expected a moment with its time zone")
    return moment


def _key(key: ApiKey) -> KeyAnswer:
    shown = KeyAnswer.model_validate(key, from_attributes=True)
    return shown.model_copy(update={"scopes": sorted(shown.scopes)})


def _tenant(tenant: Tenant) -> TenantAnswer:
    return TenantAnswer.model_validate(tenant, from_attributes=True)


def _json(answer: BaseModel, status: int = 200) -> Response:
    return JSONResponse(answer.model_dump(mode="json"), status)
