"""The generate routes: one JSON object, a list of one, or server-sent events; the task in the body or in the path."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from prefix_store.tenants import Scope
from server.access import Needs
from server.answer_schemas import GenerateAnswer
from server.answers import KEEP_ALIVE, body_of, error_event, event_of, final_headers, headers_of, queue_header
from server.caller import caller_of
from server.errors import INTERNAL, kind_of
from server.generation import Generation, new_row, prepare, run, run_streaming
from server.http import read_json, unless_disconnected
from server.openapi import errors, json_body
from server.rows import Row
from server.schemas import GenerateBody
from server.services import Services, services_of
from server.stream import EventStream

router = APIRouter(tags=["generate"], dependencies=[Depends(Needs(Scope.GENERATE))])

ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504)
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "description": "JSON"}}}
STREAM = {"text/event-stream": {"schema": EVENT}}
JSON_OR_STREAM: dict[int | str, dict[str, Any]] = {200: {"model": GenerateAnswer, "content": STREAM}, **ERRORS}
LIST_OR_STREAM: dict[int | str, dict[str, Any]] = {200: {"model": list[GenerateAnswer], "content": STREAM}, **ERRORS}
ONLY_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": STREAM, "description": "Events"}, **ERRORS}
BODY = json_body(GenerateBody)


@router.post("/generate", responses=JSON_OR_STREAM, openapi_extra=BODY)
async def generate(request: Request) -> Response:
    return await _answer(request)


@router.post("/tasks/{task_id}/generate", responses=JSON_OR_STREAM, openapi_extra=BODY)
async def generate_with_task(request: Request, task_id: str) -> Response:
    return await _answer(request, task_id)


@router.post("/generate_stream", responses=ONLY_STREAM, openapi_extra=BODY)
async def generate_stream(request: Request) -> Response:
    return await _answer(request, stream=True)


@router.post("/tasks/{task_id}/generate_stream", responses=ONLY_STREAM, openapi_extra=BODY)
async def generate_stream_with_task(request: Request, task_id: str) -> Response:
    return await _answer(request, task_id, stream=True)


@router.post("/", responses=LIST_OR_STREAM, openapi_extra=BODY)
async def generate_list(request: Request) -> Response:
    return await _answer(request, as_list=True)


@router.post("/tasks/{task_id}", responses=LIST_OR_STREAM, openapi_extra=BODY)
async def generate_list_with_task(request: Request, task_id: str) -> Response:
    return await _answer(request, task_id, as_list=True)


async def _answer(
    request: Request, task_id: str | None = None, *, stream: bool = False, as_list: bool = False
) -> Response:
    services, caller = services_of(request), caller_of(request)
    services.limits.admit(caller.principal)
    body = await read_json(request, GenerateBody, services.settings.max_json_bytes)
    if stream:
        body = body.model_copy(update={"stream": True})
    generation = await unless_disconnected(request, prepare(services, caller, body, task_id))
    if body.stream:
        return await _stream(request, services, generation)
    rows = await unless_disconnected(request, run(services, generation))
    answer = body_of(generation, rows, services.tokenizer)
    return JSONResponse([answer] if as_list else answer, headers=final_headers(generation, rows))


async def _stream(request: Request, services: Services, generation: Generation) -> Response:
    """The 200 goes out with the first token: an error before it is an answer like any other."""
    row = new_row(services, generation)
    events = _events(services, generation, row)
    first = await unless_disconnected(request, _first(events))
    headers = {**headers_of(generation), **queue_header(generation, row)}
    return EventStream(
        first,
        events,
        headers,
        error_event=partial(_last_event, services, generation),
        on_end=lambda outcome: services.metrics.streams.labels(outcome).inc(),
        reader_stall_timeout=services.settings.reader_stall_timeout,
    )


async def _events(services: Services, generation: Generation, row: Row) -> AsyncGenerator[bytes, None]:
    """What can be written at once is one piece: a slow reader gets several events in it, never fewer."""
    index = 0
    tokens_of_steps = run_streaming(services, generation, row)
    try:
        async for tokens in tokens_of_steps:
            written = b""
            for i, token in enumerate(tokens):
                index += 1
                is_last = row.finish_reason is not None and i == len(tokens) - 1
                written += event_of(index, token, generation, row, is_last)
            yield written or KEEP_ALIVE
    finally:
        await tokens_of_steps.aclose()


async def _first(events: AsyncGenerator[bytes, None]) -> bytes:
    """The first piece that is not a keep-alive."""
    try:
        async for piece in events:
            if piece is not KEEP_ALIVE:
                return piece
    except BaseException:
        await events.aclose()
        raise
    raise AssertionError("a row that ended without a token and without an error")


def _last_event(services: Services, generation: Generation, error: Exception) -> bytes:
    """What goes wrong after the 200 is told by the stream's last event."""
    request_id = generation.caller.request_id
    if kind_of(error) is INTERNAL:
        services.log.error("stream_failed", request_id=request_id, exc_info=error)
    return error_event(error, request_id)
