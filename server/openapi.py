"""The OpenAPI document's parts that FastAPI cannot see, since the routes read their bodies themselves."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.admin_schemas import BackupBody, KeyBody, TenantBody, TenantPatch
from server.answer_schemas import ErrorAnswer
from server.openai.schemas import ChatBody, CompletionBody
from server.schemas import GenerateBody, ScoreBody, TaskPatch, TextUpload, TokenizeBody

COMPONENTS = "#/components/schemas/{model}"
BODIES: Sequence[type[BaseModel]] = (
    GenerateBody,
    TaskPatch,
    TextUpload,
    TokenizeBody,
    TenantBody,
    TenantPatch,
    KeyBody,
    BackupBody,
    CompletionBody,
    ChatBody,
    ScoreBody,
)
MEANINGS = {
    400: "The body is not JSON",
    401: "No key, or none that is good",
    403: "A scope that the key lacks, or a quota",
    404: "No such task, version or route",
    408: "The body came too slowly",
    412: "`If-Match` or `If-None-Match` does not hold",
    413: "The body is over the limit",
    415: "Another content type or encoding",
    422: "A field's value, or a request that does not fit the backbone",
    424: "The engine failed this row, or its version is damaged or quarantined",
    429: "The queue is full, or the tenant's own limit is reached",
    500: "An error of the server's",
    503: "Starting, draining, the engine is gone, or no room for a file",
    504: "The queue or the request took too long",
    507: "The store's disk is full",
}


EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string", "description": "JSON"}}}
STREAM = {"text/event-stream": {"schema": EVENT}}


def errors(*statuses: int, model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model, "description": MEANINGS[status]} for status in statuses}


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    return request_body({"application/json": {"schema": reference(schema)}})


def request_body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def reference(schema: type[BaseModel]) -> dict[str, str]:
    return {"$ref": COMPONENTS.format(model=schema.__name__)}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document: FastAPI's, with the bodies' schemas added."""
    whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, bodies = models_json_schema([(body, "validation") for body in BODIES], ref_template=COMPONENTS)
    whole.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
    return whole
