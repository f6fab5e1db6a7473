"""Every way a request can fail, and the one table that turns it into an HTTP status and an `error_type`.

Knows the error classes of the store and the engine. Knows nothing of routes or of how an answer is written.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from batching.types import RequestError
from prefix_store.errors import (
    CorruptPrefix,
    CorruptRecord,
    InvalidPrefix,
    InvalidTaskId,
    InvalidTenant,
    OutOfSpace,
    PreconditionFailed,
    PublicNameTaken,
    Quarantined,
    QuotaExceeded,
    StaleVersion,
    StoreUnavailable,
    TenantExists,
    Unauthorized,
    UnknownKey,
    UnknownTask,
    UnknownTenant,
    UnknownVersion,
)


class ServerError(Exception):
    """What the server itself refuses; the message says what was wrong and what was expected."""


class BadRequest(ServerError):
    """A body that is not JSON."""


class InvalidValue(ServerError):
    """A field's value; `field` is its name, where it is one field's."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooLarge(ServerError):
    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the body is larger than the {max_bytes} bytes that this route reads")


class UnsupportedMediaType(ServerError):
    """A content type or encoding that this route does not read."""


class Forbidden(ServerError):
    """A route that the key's scopes do not open."""


class BodyTooSlow(ServerError):
    def __init__(self, num_bytes: int, seconds: float) -> None:
        super().__init__(f"only {num_bytes} bytes of the body came in {seconds:.1f} s; send it faster")


class NoSuchTask(ServerError):
    """A name that can be no task's."""


class GenerationFailed(ServerError):
    """The engine failed this row, and this row only."""


class NotFinite(GenerationFailed):
    """The backbone's numbers for a row were infinite or NaN: that is its prefix, whatever the request asked for.

    `place` is whose they were, among the parts of a mix.
    """

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class Overloaded(ServerError):
    def __init__(self, num_open: int, max_open: int) -> None:
        super().__init__(f"{num_open} rows are running or waiting, and at most {max_open} may; try again")


class RateLimited(ServerError):
    """A tenant's own limit; `seconds` until it may try again."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(seconds))


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
    Unauthorized: ErrorKind(401, "unauthorized", {"www-authenticate": "Bearer"}),
    Forbidden: ErrorKind(403, "forbidden"),
    QuotaExceeded: ErrorKind(403, "quota_exceeded"),
    NoSuchTask: ErrorKind(404, "not_found"),
    UnknownTask: ErrorKind(404, "not_found"),
    UnknownVersion: ErrorKind(404, "not_found"),
    UnknownTenant: ErrorKind(404, "not_found"),
    UnknownKey: ErrorKind(404, "not_found"),
    BodyTooSlow: ErrorKind(408, "timeout"),
    PreconditionFailed: ErrorKind(412, "precondition_failed"),
    PublicNameTaken: ErrorKind(412, "precondition_failed"),
    TenantExists: ErrorKind(412, "precondition_failed"),
    TooLarge: ErrorKind(413, "too_large"),
    UnsupportedMediaType: ErrorKind(415, "unsupported_media_type"),
    InvalidValue: ErrorKind(422, "validation"),
    RequestError: ErrorKind(422, "validation"),
    RequestValidationError: ErrorKind(422, "validation"),
    InvalidTaskId: ErrorKind(422, "validation"),
    InvalidPrefix: ErrorKind(422, "validation"),
    InvalidTenant: ErrorKind(422, "validation"),
    StaleVersion: ErrorKind(422, "validation"),
    GenerationFailed: ErrorKind(424, "generation"),
    CorruptPrefix: ErrorKind(424, "generation"),
    CorruptRecord: ErrorKind(424, "generation"),
    Quarantined: ErrorKind(424, "quarantined"),
    Overloaded: ErrorKind(429, "overloaded", RETRY),
    RateLimited: ErrorKind(429, "rate_limited"),
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


def headers_of(error: Exception) -> dict[str, str]:
    """What goes out with the answer: the kind's own, and when a tenant may try again."""
    own = {"retry-after": str(error.retry_after)} if isinstance(error, RateLimited) else {}
    return {**kind_of(error).headers, **own}


def message_of(error: Exception, request_id: str) -> str:
    """What the caller is told. Of an error of ours only the request's id, by which the log has the rest."""
    if isinstance(error, HTTPException):
        return {404: "no such route", 405: "this route has no such method"}.get(error.status_code, error.detail)
    if isinstance(error, RequestValidationError):  # never the value that was sent: it may be anything
        return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
    if kind_of(error) is INTERNAL:
        return f"the server failed at request {request_id}"
    return str(error)
