"""Every way a request can fail, and the one table that turns it into an HTTP status and an `error_type`.

Knows the error classes of the store and the engine. Knows nothing of routes or of how an answer is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from batching.types import RequestError
from prefix_store.errors import (
    CorruptPrefix,
    InvalidPrefix,
    InvalidTaskId,
    OutOfSpace,
    PreconditionFailed,
    StaleVersion,
    StoreUnavailable,
    UnknownTask,
    UnknownVersion,
)


class ServerError(Exception):
    """What the server itself refuses; the message says what was wrong and what was expected."""


class BadRequest(ServerError):
    """A body that is not JSON."""


class InvalidValue(ServerError):
    """A field's value."""


class TooLarge(ServerError):
    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is larger than the {max_bytes} bytes that this route reads")


class UnsupportedMediaType(ServerError):
    """A content type or encoding that this route does not read."""


class Forbidden(ServerError):
    """An operator's route."""


class NoSuchTask(ServerError):
    """A name that can be no task's."""


class GenerationFailed(ServerError):
    """The engine failed this row, and this row only."""


class Overloaded(ServerError):
    def __init__(self, num_open: int, max_open: int) -> None:
        super().__init__(f"{num_open} rows are running or waiting, and at most {max_open} may; try again")


class Unavailable(ServerError):
    """Starting, draining, or the engine is gone."""


class DeadlinePassed(ServerError):
    """The wait in the queue or the whole request took too long."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How a class of errors is answered. `headers` go out with it."""

    status: int
    error_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


RETRY = {"retry-after": "1"}

ERRORS: Mapping[type[Exception], ErrorKind] = {
    BadRequest: ErrorKind(400, "bad_request"),
    Forbidden: ErrorKind(403, "forbidden"),
    NoSuchTask: ErrorKind(404, "not_found"),
    UnknownTask: ErrorKind(404, "not_found"),
    UnknownVersion: ErrorKind(404, "not_found"),
    PreconditionFailed: ErrorKind(412, "precondition_failed"),
    TooLarge: ErrorKind(413, "too_large"),
    UnsupportedMediaType: ErrorKind(415, "unsupported_media_type"),
    InvalidValue: ErrorKind(422, "validation"),
    RequestError: ErrorKind(422, "validation"),
    RequestValidationError: ErrorKind(422, "validation"),
    InvalidTaskId: ErrorKind(422, "validation"),
    InvalidPrefix: ErrorKind(422, "validation"),
    StaleVersion: ErrorKind(422, "validation"),
    GenerationFailed: ErrorKind(424, "generation"),
    CorruptPrefix: ErrorKind(424, "generation"),
    Overloaded: ErrorKind(429, "overloaded", RETRY),
    Unavailable: ErrorKind(503, "unavailable", RETRY),
    StoreUnavailable: ErrorKind(503, "unavailable", RETRY),
    DeadlinePassed: ErrorKind(504, "deadline"),
    OutOfSpace: ErrorKind(507, "out_of_space"),
}

INTERNAL = ErrorKind(500, "internal")

# What the router itself refuses, by status.
ROUTER_ERROR_TYPES = {404: "not_found", 405: "method_not_allowed"}


def kind_of(error: Exception) -> ErrorKind:
    """Look an error up by its class, then by its parents' classes; a class not in the table is ours, and internal."""
    if isinstance(error, HTTPException):
        error_type = ROUTER_ERROR_TYPES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
        return ErrorKind(error.status_code, error_type, error.headers or {})
    return next((ERRORS[parent] for parent in type(error).__mro__ if parent in ERRORS), INTERNAL)


def message_of(error: Exception, request_id: str) -> str:
    """What the caller is told. Of an error of ours only the request's id, by which the log has the rest."""
    if isinstance(error, HTTPException):
        return {404: "no such route", 405: "this route has no such method"}.get(error.status_code, error.detail)
    if isinstance(error, RequestValidationError):  # never the value that was sent: it may be anything
        return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
    if kind_of(error) is INTERNAL:
        return f"the server failed at request {request_id}"
    return str(error)
