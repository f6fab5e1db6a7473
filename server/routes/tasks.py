"""The task routes: upload, list, read back, roll back, configure and delete."""

import asyncio
import hashlib
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from batching.types import Request as EngineRequest
from prefix_store.errors import shown
from prefix_store.names import check_new_task_id
from prefix_store.tasks import Published, Task, TaskConfig
from prefix_store.tenants import Scope
from prefix_store.usage import Usage, UsageLedger
from server.access import Needs, principal_of
from server.administration import note
from server.admission import counted
from server.answer_schemas import (
    ConfigAnswer,
    TaskAnswer,
    TasksAnswer,
    TaskUsageAnswer,
    UploadAnswer,
    VersionAnswer,
)
from server.caller import Caller, caller_of
from server.errors import Forbidden, InvalidValue, UnsupportedMediaType
from server.file_answer import FileAnswer
from server.http import (
    content_type_of,
    max_body_bytes,
    no_key_twice,
    parse_json,
    read_body,
    read_json,
    unless_disconnected,
    validate,
)
from server.openapi import errors, json_body, reference, request_body
from server.parameters import check_combination, sampling_params
from server.schemas import MAX_COUNT, ConfigPatch, GenerateParameters, TaskPatch, TextUpload
from server.services import Services, services_of
from server.uploads import Candidate, Conditions, max_upload_bytes, publish, read_file, read_text, try_out

router = APIRouter(prefix="/tasks", tags=["tasks"])

needs_tasks = Needs(Scope.TASKS)
MAY_UPLOAD = [Depends(needs_tasks), Depends(no_key_twice)]  # uploads have a limit of their own
MAY_READ = [Depends(Needs()), Depends(counted), Depends(no_key_twice)]
MAY_CHANGE = [*MAY_UPLOAD, Depends(counted)]

Version = Annotated[int | None, Query(ge=1, le=MAX_COUNT)]
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
UPLOAD = request_body({**FILE, "application/json": {"schema": reference(TextUpload)}})


@router.put(
    "/{task_id}",
    dependencies=MAY_UPLOAD,
    responses={
        200: {"model": UploadAnswer, "description": "A new version, or one that was there"},
        201: {"model": UploadAnswer, "description": "A new task"},
        **errors(400, 401, 403, 408, 412, 413, 415, 422, 424, 429, 500, 503, 504, 507),
    },
    openapi_extra=UPLOAD,
)
async def upload(request: Request, task_id: str, serve: bool = True) -> Response:
    """The task's next version, which gets all its requests from now on. With `serve=false` it gets none until a PATCH
    says so; the first version of a new task is served in any case."""
    services, caller = services_of(request), caller_of(request)
    if unknown := sorted(request.query_params.keys() - {"serve"}):  # misspelt, it would serve what it should not
        raise InvalidValue(f"no query parameter '{shown(unknown[0])}' here; there is serve", unknown[0])
    services.check_open(caller.principal)  # before the body: one that has begun to come is work in flight
    is_text = content_type_of(request) == "application/json"
    max_bytes = services.settings.max_json_bytes if is_text else max_upload_bytes(services)
    with services.file_room.taken(caller.tenant, max_body_bytes(request, max_bytes)):
        services.limits.admit_upload(caller.principal)
        check_new_task_id(task_id, services.backbone.name)
        conditions = _conditions(request)
        candidate = await _read_candidate(request, services, caller)
        await unless_disconnected(request, try_out(services, caller, candidate))
        await needs_tasks(request)  # the key may have been revoked since the head came, a minute ago
        published = await publish(services, caller, task_id, candidate, conditions, serve)
    version = published.version
    await note(request, "task.upload", task_id=task_id, version=version.version, sha256=version.sha256, serve=serve)
    return _uploaded(task_id, published)


@router.get("", dependencies=MAY_READ, responses={200: {"model": TasksAnswer}, **errors(401, 422, 429, 500, 503)})
async def list_tasks(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: str | None = None
) -> Response:
    store, tenant = services_of(request).store, principal_of(request).tenant

    def write() -> Response:
        tasks = store.tasks(tenant, limit + 1, after)
        page = _with_usage(store.usage, tenant, tasks[:limit])
        return _json(TasksAnswer(tasks=page, next=page[-1].task_id if len(tasks) > limit else None))

    return await asyncio.to_thread(write)


@router.get(
    "/{task_id}",
    dependencies=MAY_READ,
    responses={200: {"model": TaskAnswer}, **errors(401, 404, 422, 424, 429, 500, 503)},
)
async def read_task(request: Request, task_id: str) -> Response:
    task = await asyncio.to_thread(services_of(request).store.task, principal_of(request).tenant, task_id)
    return await _task_response(request, task)


@router.get(
    "/{task_id}/prefix",
    dependencies=MAY_CHANGE,
    responses={200: {"content": FILE}, **errors(401, 403, 404, 422, 424, 429, 500, 503)},
)
async def read_prefix(request: Request, task_id: str, version: Version = None) -> Response:
    """What was uploaded, byte for byte."""
    services, tenant = services_of(request), principal_of(request).tenant
    upload, facts = await services.read(services.store.upload_bytes, tenant, task_id, version)
    media_type = "application/json" if facts.kind == "text" else "application/octet-stream"
    headers = {"etag": _etag(facts.sha256), "x-task-version": str(facts.version)}
    return FileAnswer(upload, media_type, headers, services.file_room, tenant)


@router.patch(
    "/{task_id}",
    dependencies=MAY_CHANGE,
    responses={
        200: {"model": TaskAnswer},
        **errors(400, 401, 403, 404, 408, 412, 413, 415, 422, 424, 429, 500, 503, 507),
    },
    openapi_extra=json_body(TaskPatch),
)
async def patch_task(request: Request, task_id: str) -> Response:
    services, principal = services_of(request), principal_of(request)
    patch = await read_json(request, TaskPatch, services.settings.max_json_bytes)
    if patch.public is not None and Scope.OPERATOR not in principal.scopes:
        raise Forbidden("only an operator may make a task public")
    if patch.config is not None and patch.config.parameters is not None:
        # Defaults that contradict each other, or ask for too much, would refuse every request that says nothing.
        defaults = GenerateParameters().model_copy(update=patch.config.parameters.model_dump())
        check_combination(defaults, stream=False)
        params = sampling_params(defaults, services.engine.max_model_len, has_scores=False)
        task = await asyncio.to_thread(services.store.task, principal.tenant, task_id)
        prompt = (0,) * (1 + _num_virtual_tokens(task, patch))  # which take as many positions
        services.engine.check(EngineRequest("", principal.tenant, prompt, sampling_params=params))
    if_match = _if_match(request)
    task = await services.write(
        services.store.patch,
        principal.tenant,
        task_id,
        version=patch.version,
        traffic=patch.traffic_weights,
        change_config=None if patch.config is None else partial(_patched, patch.config),
        public=patch.public,
        if_match=if_match,
    )
    changes = patch.model_dump(include={"version", "traffic", "public"}, exclude_unset=True)
    config = sorted(patch.config.model_fields_set) if patch.config is not None else []  # a template is not told
    await note(request, "task.patch", task_id=task_id, **changes, config=config)
    return await _task_response(request, task)


@router.delete(
    "/{task_id}",
    dependencies=MAY_CHANGE,
    status_code=204,
    responses=errors(401, 403, 404, 412, 422, 424, 429, 500, 503, 507),
)
async def delete_task(request: Request, task_id: str) -> Response:
    services, if_match = services_of(request), _if_match(request)
    await services.write(services.store.delete, principal_of(request).tenant, task_id, if_match)
    await note(request, "task.delete", task_id=task_id)
    return Response(status_code=204)


def _num_virtual_tokens(task: Task, patch: TaskPatch) -> int:
    """Of the longest prefix that requests will get."""
    traffic = task.traffic if patch.version is None and patch.traffic_weights is None else patch.traffic_weights or {}
    numbers = {patch.version or task.served_version, *traffic}
    return max((found.num_virtual_tokens for found in task.versions if found.version in numbers), default=0)


async def _read_candidate(request: Request, services: Services, caller: Caller) -> Candidate:
    content_type = content_type_of(request)
    if content_type == "application/json":
        body = await read_body(request, services.settings.max_json_bytes)
        _check_sha256(request, body)
        text = validate(TextUpload, parse_json(body)).text
        return await unless_disconnected(request, read_text(services, caller, body, text))
    if content_type not in (None, "application/octet-stream"):
        raise UnsupportedMediaType(
            "the body must be a safetensors file as application/octet-stream, or a text as application/json"
        )
    body = await read_body(request, max_upload_bytes(services))
    await asyncio.to_thread(_check_sha256, request, body)
    return await unless_disconnected(request, read_file(services, caller, body))


def _check_sha256(request: Request, body: bytes) -> None:
    declared = request.headers.get("x-content-sha256")
    actual = hashlib.sha256(body).hexdigest()
    if declared is not None and declared.lower() != actual:
        raise InvalidValue(f"x-content-sha256 is not that of the body, which is {actual}; send it again")


def _conditions(request: Request) -> Conditions:
    if_match, if_none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if if_none_match not in (None, "*"):
        raise InvalidValue("If-None-Match: expected *, which asks for a task that is not there yet")
    return Conditions(
        if_match=None if if_match is None else if_match.removeprefix("W/").strip('"'),
        if_none_match=if_none_match is not None,
    )


def _if_match(request: Request) -> str | None:
    """For what changes a task that is there."""
    conditions = _conditions(request)
    if conditions.if_none_match:
        raise InvalidValue("If-None-Match: * asks for a task that is not there yet, and is for uploads")
    return conditions.if_match


def _patched(patch: ConfigPatch, config: TaskConfig) -> TaskConfig:
    """What the patch names is set or cleared; the rest stays."""
    given = patch.model_fields_set
    parameters = {} if patch.parameters is None else patch.parameters.model_dump(exclude_none=True)
    chat_template = None if patch.chat_template is None else patch.chat_template.model_dump()
    return TaskConfig(
        description=(patch.description or "") if "description" in given else config.description,
        prompt_template=patch.prompt_template if "prompt_template" in given else config.prompt_template,
        chat_template=chat_template if "chat_template" in given else config.chat_template,
        parameters=parameters if "parameters" in given else config.parameters,
    )


def _uploaded(task_id: str, published: Published) -> Response:
    version = published.version
    answer = UploadAnswer(
        task_id=task_id,
        version=version.version,
        sha256=version.sha256,
        kind=version.kind,
        num_virtual_tokens=version.num_virtual_tokens,
        num_bytes=version.num_bytes,
        backbone_checked=version.backbone_checked,
        created_at=version.created_at,
    )
    return _json(answer, 201 if published.created_task else 200, etag=version.sha256)


def _with_usage(ledger: UsageLedger, tenant: str, tasks: list[Task]) -> list[TaskAnswer]:
    used = ledger.by_task(tenant, [task.task_id for task in tasks])
    return [_task(tenant, task, used.get(task.task_id, Usage())) for task in tasks]


def _task(tenant: str, task: Task, used: Usage) -> TaskAnswer:
    config = ConfigAnswer(
        description=task.config.description,
        prompt_template=task.config.prompt_template,
        chat_template=None if task.config.chat_template is None else dict(task.config.chat_template),
        parameters=dict(task.config.parameters),
    )
    return TaskAnswer(
        task_id=task.task_id,
        version=task.served_version,
        traffic={str(version): weight for version, weight in task.traffic.items()} or None,
        public=task.public,
        own=task.tenant == tenant,
        created_at=task.created_at,
        versions=[VersionAnswer.model_validate(version, from_attributes=True) for version in task.versions],
        config=config,
        usage=TaskUsageAnswer.model_validate(used, from_attributes=True),
    )


async def _task_response(request: Request, task: Task) -> Response:
    ledger, tenant = services_of(request).store.usage, principal_of(request).tenant

    def write() -> Response:
        (answer,) = _with_usage(ledger, tenant, [task])
        return _json(answer, etag=task.served.sha256)

    return await asyncio.to_thread(write)


def _json(answer: BaseModel, status: int = 200, etag: str | None = None) -> Response:
    headers = {} if etag is None else {"etag": _etag(etag)}
    return JSONResponse(answer.model_dump(mode="json"), status, headers=headers)


def _etag(sha256: str) -> str:
    return f'"{sha256}"'
