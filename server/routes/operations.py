"""What operators and their machines ask: health, readiness, facts, metrics; and `/tokenize`."""

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from prefix_store.errors import StoreError
from prefix_store.tenants import Scope
from server.access import Needs, principal_of
from server.admin_schemas import UsageAnswer, daily_usage
from server.answer_schemas import InfoAnswer, StatusAnswer, TokenizedAnswer
from server.errors import InvalidValue, Unavailable
from server.http import read_json
from server.openapi import errors, json_body
from server.schemas import MAX_BEST_OF, MAX_STOP_STRINGS, TokenizeBody
from server.services import Services, services_of

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={200: {"model": StatusAnswer}, **errors(503)})
async def health(request: Request) -> Response:
    """Is the process alive, and its engine? Being idle or busy or draining is no illness."""
    failure = services_of(request).engine.failure
    if failure is not None:
        raise Unavailable(failure)
    return JSONResponse({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses={200: {"model": StatusAnswer}, **errors(503)})
async def ready(request: Request) -> Response:
    """Should requests be sent here? Degraded: tasks in memory are served, but the store cannot be reached."""
    services = services_of(request)
    if services.engine.failure is not None:
        raise Unavailable(services.engine.failure)
    if services.lifecycle.is_draining:
        raise Unavailable("the server is draining")
    try:
        await services.ping_store()
    except (StoreError, TimeoutError) as error:
        services.log.warning("store_unreachable", error=str(error) or "no answer yet")
        return JSONResponse({"status": "degraded"})
    return JSONResponse({"status": "ready"})


@router.head("/ping", include_in_schema=False)
@router.get("/ping", responses={200: {"model": StatusAnswer}})
async def ping() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/info", dependencies=[Depends(Needs())], responses={200: {"model": InfoAnswer}, **errors(401, 500, 503)})
async def info(request: Request) -> Response:
    services = services_of(request)
    num_tasks = await asyncio.to_thread(services.store.count, principal_of(request).tenant)
    return JSONResponse(_info(services, num_tasks).model_dump())


@router.get(
    "/usage",
    dependencies=[Depends(Needs())],
    responses={200: {"model": UsageAnswer}, **errors(401, 500, 503)},
)
async def usage(request: Request) -> Response:
    """What the caller's tenant used, by task and day; it is written down every few seconds."""
    ledger, tenant = services_of(request).store.usage, principal_of(request).tenant
    return await asyncio.to_thread(lambda: JSONResponse(daily_usage(ledger.by_day(tenant)).model_dump(mode="json")))


@router.get(
    "/metrics",
    dependencies=[Depends(Needs(Scope.OPERATOR, or_nobody=True))],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401, 403, 500, 503)},
    response_class=Response,
)
async def metrics(request: Request) -> Response:
    return Response(services_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.post(
    "/tokenize",
    dependencies=[Depends(Needs(Scope.GENERATE))],
    responses={200: {"model": list[TokenizedAnswer]}, **errors(400, 401, 403, 408, 413, 415, 422, 429, 500, 503)},
    openapi_extra=json_body(TokenizeBody),
)
async def tokenize(request: Request) -> Response:
    """The tokens of a text and their places in it, in characters."""
    services = services_of(request)
    services.limits.admit(principal_of(request))
    body = await read_json(request, TokenizeBody, services.settings.max_json_bytes)
    if len(body.inputs.encode()) > services.settings.max_prompt_bytes:
        raise InvalidValue(f"inputs: expected at most {services.settings.max_prompt_bytes} bytes of text")
    tokens = await asyncio.to_thread(services.tokenizer.spans, body.inputs)
    return JSONResponse(
        [
            {"id": token.id, "text": body.inputs[token.start : token.stop], "start": token.start, "stop": token.stop}
            for token in tokens
        ]
    )


def _info(services: Services, num_tasks: int) -> InfoAnswer:
    backbone, engine = services.backbone, services.engine
    return InfoAnswer(
        model_id=backbone.name,
        model_sha=backbone.spec.fingerprint,
        model_dtype=backbone.dtype_name,
        model_device_type=backbone.device_name.partition(":")[0],
        max_concurrent_requests=engine.room.max_rows,
        max_best_of=MAX_BEST_OF,
        max_stop_sequences=MAX_STOP_STRINGS,
        max_input_length=engine.max_model_len - 1,
        max_input_tokens=engine.max_model_len - 1,
        max_total_tokens=engine.max_model_len,
        max_batch_size=engine.max_num_seqs,
        version=version("polyprefix"),
        num_tasks=num_tasks,
        backbone=backbone.name,
        fingerprint=backbone.spec.fingerprint,
    )
