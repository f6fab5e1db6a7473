"""Reads requests strictly and writes errors: bodies within their limit, JSON without surprises, who has left.

Knows HTTP and JSON. Knows nothing of tasks, tokens or the engine.
"""

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prefix_store.errors import shown
from server.error_bodies import error_body
from server.errors import ERRORS, BadRequest, InvalidValue, TooLarge, UnsupportedMediaType, headers_of, kind_of

METHOD_NOT_ALLOWED = 405
MAX_PROBLEMS = 5  # of a body that are told: it can have one in every two of its bytes
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)


def choose_request_id(given: bytes | None) -> str:
    """The caller's own `x-request-id` if it is short and printable, else a fresh one, which is no secret."""
    return given.decode() if given is not None and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def request_id_of(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


def arrived_at_of(request: Request) -> float:
    """When the request's headers had come, as `time.monotonic` counts."""
    arrived_at: float = request.state.arrived_at
    return arrived_at


def error_response(error: Exception, path: str, request_id: str) -> JSONResponse:
    """`path` is that of the request, which decides the dialect."""
    return JSONResponse(error_body(error, path, request_id), kind_of(error).status, headers=headers_of(error))


def answer_errors(app: FastAPI) -> None:
    """Have the application answer every error of the table as it says there."""
    for error_class in (*ERRORS, HTTPException):
        app.add_exception_handler(error_class, _answer_error)


async def _answer_error(request: Request, error: Exception) -> Response:
    response = error_response(error, request.scope["path"], request_id_of(request))
    if response.status_code == METHOD_NOT_ALLOWED:
        # The router knows the methods of the first route of this path only.
        path = getattr(request.scope.get("route"), "path", None)
        methods = request.app.openapi()["paths"].get(path, ())
        response.headers["allow"] = ", ".join(map(str.upper, methods)) or response.headers["allow"]
    return response


def content_type_of(request: Request) -> str | None:
    """The media type in lower case, without parameters; raises `UnsupportedMediaType` on any Content-Encoding."""
    if "content-encoding" in request.headers:
        raise UnsupportedMediaType("the body has a Content-Encoding; send it plain")
    given = request.headers.get("content-type")
    return None if given is None else given.partition(";")[0].strip().lower()


def max_body_bytes(request: Request, max_bytes: int) -> int:
    """How many bytes the body may have: its Content-Length, else all that is read of one. Raises `TooLarge`."""
    declared = request.headers.get("content-length", "")
    num_bytes = int(declared) if declared.isdecimal() else max_bytes
    if num_bytes > max_bytes:
        raise TooLarge(max_bytes)
    return num_bytes


async def no_key_twice(request: Request) -> None:
    """A dependency of routes with a query. Raises `InvalidValue` where it says the same twice, as a body's object may
    not: the last would be taken, and the first forgotten."""
    keys = [key for key, _ in request.query_params.multi_items()]
    if len(set(keys)) != len(keys):
        raise InvalidValue("the query has the same key twice")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises `TooLarge` from its Content-Length alone, or as soon as too much has come."""
    max_body_bytes(request, max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(max_bytes)
    return bytes(body)


async def read_json(request: Request, schema: type[Body], max_bytes: int) -> Body:
    """The body as `schema`. Raises `UnsupportedMediaType`, `TooLarge`, `BadRequest` or `InvalidValue`."""
    if content_type_of(request) != "application/json":
        raise UnsupportedMediaType("the body's content type must be application/json")
    return validate(schema, parse_json(await read_body(request, max_bytes)))


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, no infinity, no lone surrogates.

    Raises `BadRequest` where it is no JSON at all and `InvalidValue` where a value is none that JSON should carry.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=_object_without_duplicates
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidValue("a string holds half of a surrogate pair") from None
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python reads
        raise BadRequest(f"the body is not JSON: {error}") from None
    return value


def validate(schema: type[Body], value: Any) -> Body:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidValue(_describe(problems), _first_field(problems)) from None


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, but cancel it if the client leaves first: a handler that does not stream would not notice.

    The body must have been read. Raises `ClientDisconnect`.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def written(write: Callable[[], Response], *, is_long: bool) -> Response:
    """An answer with thousands of scored tokens takes seconds to write: a thread does it, and others go on."""
    return await asyncio.to_thread(write) if is_long else write()


def _describe(problems: Sequence[ErrorDetails]) -> str:
    told = [
        f"{shown('.'.join(map(str, each['loc']))) or 'body'}: {each['msg'].removeprefix('Value error, ')}"
        for each in problems[:MAX_PROBLEMS]
    ]
    return "; ".join(told) + (f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else "")


def _first_field(problems: Sequence[ErrorDetails]) -> str | None:
    """The body's own field that the first problem is in."""
    place = problems[0]["loc"]
    return shown(str(place[0])) if place else None


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise InvalidValue("a number is too large for a float")
    return value


def _no_constant(literal: str) -> NoReturn:
    raise InvalidValue(f"{literal} is not a JSON number")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidValue("an object has the same key twice")
    return value
