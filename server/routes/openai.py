"""OpenAI's routes: completions, chats, and the list of models."""

import asyncio
from collections.abc import Iterator

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from prefix_store.store import PrefixStore
from prefix_store.tasks import Task
from prefix_store.tenants import Scope
from server.access import Needs, principal_of
from server.admission import counted
from server.answers import final_headers
from server.asked import choose_task
from server.caller import caller_of
from server.generation import Generation
from server.http import read_json, request_id_of, unless_disconnected, written
from server.openai.answer_schemas import ChatAnswer, CompletionAnswer, ModelAnswer, ModelsAnswer, OpenAIErrorAnswer
from server.openai.answers import Answer, ChatForm, Chunks, Form, TextForm
from server.openai.requests import prepare_chat, prepare_completion
from server.openai.schemas import ChatBody, CompletionBody, SampledBody
from server.openapi import STREAM, errors, json_body
from server.running import run, samples_of
from server.services import Services, services_of
from server.token_stream import stream_rows

router = APIRouter(prefix="/v1", tags=["openai"])

MAY_GENERATE = [Depends(Needs(Scope.GENERATE))]
MAY_READ = [Depends(Needs()), Depends(counted)]
ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504, model=OpenAIErrorAnswer)
READING = errors(401, 404, 422, 424, 429, 500, 503, model=OpenAIErrorAnswer)
PAGE = 1000


@router.post(
    "/completions",
    dependencies=MAY_GENERATE,
    responses={200: {"model": CompletionAnswer, "content": STREAM}, **ERRORS},
    openapi_extra=json_body(CompletionBody),
)
async def completions(request: Request) -> Response:
    services, caller = services_of(request), caller_of(request)
    body = await read_json(request, CompletionBody, services.settings.max_json_bytes)
    generations = await unless_disconnected(request, prepare_completion(services, caller, body))
    form = TextForm(services.tokenizer, bool(body.echo), has_logprobs=body.logprobs is not None)
    return await _answer(request, services, body, generations, form)


@router.post(
    "/chat/completions",
    dependencies=MAY_GENERATE,
    responses={200: {"model": ChatAnswer, "content": STREAM}, **ERRORS},
    openapi_extra=json_body(ChatBody),
)
async def chat(request: Request) -> Response:
    """For a task whose config has a `chat_template`."""
    services, caller = services_of(request), caller_of(request)
    body = await read_json(request, ChatBody, services.settings.max_json_bytes)
    generations = await unless_disconnected(request, prepare_chat(services, caller, body))
    form = ChatForm(services.tokenizer, has_logprobs=bool(body.logprobs))
    return await _answer(request, services, body, generations, form)


@router.get("/models", dependencies=MAY_READ, responses={200: {"model": ModelsAnswer}, **READING})
async def list_models(request: Request) -> Response:
    """The backbone, and every task that the caller may use."""
    services, tenant = services_of(request), principal_of(request).tenant

    def write() -> Response:
        models = [_backbone(services), *(_model(services, task) for task in _all_tasks(services.store, tenant))]
        return JSONResponse(ModelsAnswer(data=models).model_dump())

    return await asyncio.to_thread(write)


@router.get("/models/{model}", dependencies=MAY_READ, responses={200: {"model": ModelAnswer}, **READING})
async def read_model(request: Request, model: str) -> Response:
    services, tenant = services_of(request), principal_of(request).tenant
    task_id = choose_task([model], services.backbone.name)
    if task_id is None:
        return JSONResponse(_backbone(services).model_dump())
    task = await asyncio.to_thread(services.store.task, tenant, task_id)
    return JSONResponse(_model(services, task).model_dump())


async def _answer(
    request: Request, services: Services, body: SampledBody, generations: list[Generation], form: Form
) -> Response:
    samples = samples_of(services, generations)
    answer = Answer(request_id_of(request), body.model, form)
    if body.stream:
        include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return await stream_rows(request, services, samples, Chunks(answer, samples, include_usage))
    await unless_disconnected(request, run(services, samples))
    headers = final_headers(samples)
    return await written(
        lambda: JSONResponse(answer.whole(samples, body.num_choices), headers=headers), is_long=form.is_long
    )


def _all_tasks(store: PrefixStore, tenant: str) -> Iterator[Task]:
    after = None
    while page := store.tasks(tenant, PAGE, after):
        yield from page
        after = page[-1].task_id


def _model(services: Services, task: Task) -> ModelAnswer:
    backbone = services.backbone.name
    return ModelAnswer(id=task.task_id, created=int(task.created_at.timestamp()), root=backbone, parent=backbone)


def _backbone(services: Services) -> ModelAnswer:
    name = services.backbone.name
    return ModelAnswer(id=name, created=0, root=name, parent=None)  # when it was trained, nobody told us
