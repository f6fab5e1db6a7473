"""The generate routes: one JSON object, a list of one, or server-sent events; the task in the body or in the path."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from prefix_store.tenants import Scope
from server.access import Needs
from server.answer_schemas import GenerateAnswer
from server.answers import body_of, event_of, final_headers
from server.caller import caller_of
from server.generation import prepare
from server.http import read_json, unless_disconnected, written
from server.openapi import STREAM, errors, json_body
from server.reading import Added, Sample
from server.running import best_first, run, samples_of
from server.schemas import GenerateBody
from server.services import services_of
from server.token_stream import stream_rows

router = APIRouter(tags=["generate"], dependencies=[Depends(Needs(Scope.GENERATE))])

ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504)
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
    body = await read_json(request, GenerateBody, services.settings.max_json_bytes)
    if stream:
        body = body.model_copy(update={"stream": True})
    generation = await unless_disconnected(request, prepare(services, caller, body, task_id))
    samples = samples_of(services, [generation])
    if body.stream:
        return await stream_rows(request, services, samples, _Events(samples[0]))
    await unless_disconnected(request, run(services, samples))
    samples = best_first(samples)
    headers = final_headers(samples)

    def write() -> Response:
        answer = body_of(samples, services.tokenizer)
        return JSONResponse([answer] if as_list else answer, headers=headers)

    return await written(write, is_long=bool(generation.parameters.details))


class _Events:
    """Our dialect's events: one for each token, the last with the whole text."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._index = 0

    def of_step(self, added: Added) -> bytes:
        written = b""
        for sample, tokens in added.items():
            for token in tokens:
                self._index += 1
                written += event_of(self._index, token, sample, sample.row.is_last(token))
        return written

    def at_end(self) -> bytes:
        return b""
