"""What can go wrong between a caller and the server, as a tree of exceptions; the table at the end is the contract's.

Knows the error table of the HTTP contract. Knows nothing of retries.
"""

import email.utils
import re
from collections.abc import Mapping
from datetime import UTC, datetime

import httpx


class PolyprefixError(Exception):
    """Everything that the client raises on purpose."""


class ConnectionFailed(PolyprefixError):
    """The server could not be reached, or the connection broke before the answer was whole."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"no answer from {self.url}: {self.reason}; is a server running there (`polyprefix serve`)?"


class TimedOut(ConnectionFailed):
    """Nothing came for longer than the client's own timeout."""

    def __str__(self) -> str:
        return f"no answer from {self.url} in time: {self.reason}; try again, or set a longer timeout"


class UnexpectedAnswer(PolyprefixError):
    """The answer is not what the contract says; probably something else answers at this URL."""


class InvalidTaskId(PolyprefixError):
    """A name that can be no task's, refused before it becomes part of a URL."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return f"{self.task!r} is no task id: 1 to 128 letters, digits, '.', '_', '-', and a letter or digit first"


class InvalidUrl(PolyprefixError):
    """A base URL that can be no server's, refused when the client is made."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        advice = "expected http://HOST:PORT" if "://" in self.url else f"add http://, as in http://{self.url}"
        return f"{re.sub('//[^/@]*@', '//', self.url)!a} is no server's URL: {advice}"  # without a password


class InvalidRequest(PolyprefixError):
    """A value that has no form in a request: text that is not Unicode, a number that is not finite, an object that
    JSON does not know. Nothing was sent."""


class ApiError(PolyprefixError):
    """The server refused or failed a request, and said so.

    `status` is the HTTP status, `error_type` the contract's name for the case, `message` the server's words,
    `request_id` what to look for in its log, `retry_after` the seconds that it asks to wait, when it asks.
    """

    def __init__(
        self,
        message: str,
        status: int,
        error_type: str,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status, error_type, request_id, retry_after)
        self.message = message
        self.status = status
        self.error_type = error_type
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.message} ({self.status} {self.error_type}{request})"


class BadRequest(ApiError):
    """A body that is not JSON."""


class RequestTimeout(ApiError):
    """The body came too slowly."""


class Unauthorized(ApiError):
    """No key, or a wrong one."""


class Forbidden(ApiError):
    """An operator's route."""


class QuotaExceeded(Forbidden):
    """The tenant's number of tasks or bytes."""


class NotFound(ApiError):
    """An unknown task, version or route."""


class MethodNotAllowed(ApiError):
    """The route exists, with other methods."""


class PreconditionFailed(ApiError):
    """The task is not as `if_match` or `if_none_match` said."""


class TooLarge(ApiError):
    """A body over the limit."""


class UnsupportedMediaType(ApiError):
    """A content type that the route does not take."""


class ValidationFailed(ApiError):
    """A field's value, a context that is too long, or a prefix that does not fit the backbone."""


class GenerationFailed(ApiError):
    """The engine failed this row, and this row only."""


class Quarantined(GenerationFailed):
    """This version of the task failed too often and rests for a while."""


class Overloaded(ApiError):
    """The queue is full."""


class RateLimited(ApiError):
    """The tenant's own limit."""


class HeadersTooLarge(ApiError):
    """The request's headers are over the limit."""


class InternalError(ApiError):
    """A fault of the server's."""


class Unavailable(ApiError):
    """Starting, draining, or the engine is gone."""


class DeadlineExceeded(ApiError):
    """The wait in the queue or the whole request took too long."""


class OutOfSpace(ApiError):
    """The store's disk is full; nothing was kept."""


ERRORS: tuple[tuple[int, str, type[ApiError]], ...] = (
    (400, "bad_request", BadRequest),
    (401, "unauthorized", Unauthorized),
    (403, "forbidden", Forbidden),
    (403, "quota_exceeded", QuotaExceeded),
    (404, "not_found", NotFound),
    (405, "method_not_allowed", MethodNotAllowed),
    (408, "timeout", RequestTimeout),
    (412, "precondition_failed", PreconditionFailed),
    (413, "too_large", TooLarge),
    (415, "unsupported_media_type", UnsupportedMediaType),
    (422, "validation", ValidationFailed),
    (424, "generation", GenerationFailed),
    (424, "quarantined", Quarantined),
    (429, "overloaded", Overloaded),
    (429, "rate_limited", RateLimited),
    (431, "headers_too_large", HeadersTooLarge),
    (500, "internal", InternalError),
    (503, "unavailable", Unavailable),
    (504, "deadline", DeadlineExceeded),
    (507, "out_of_space", OutOfSpace),
)
ROW_OF_TYPE = {error_type: (status, error_class) for status, error_type, error_class in ERRORS}
ROW_OF_STATUS = {status: (error_type, error_class) for status, error_type, error_class in reversed(ERRORS)}


def error_from_response(response: httpx.Response) -> ApiError:
    """The exception for an answer that is not a success; its body must have been read.

    An answer without our JSON comes from something in between (a proxy, a load balancer): its status alone decides.
    """
    body = json_object(response)
    error_type = str(body.get("error_type", ""))
    default_type, error_class = ROW_OF_STATUS.get(response.status_code, (f"http_{response.status_code}", ApiError))
    if error_type in ROW_OF_TYPE:
        error_class = ROW_OF_TYPE[error_type][1]
    return error_class(
        str(_message(body.get("error")) or response.text[:200] or response.reason_phrase),
        response.status_code,
        error_type or default_type,
        response.headers.get("x-request-id"),
        seconds_to_wait(response.headers.get("retry-after")),
    )


def _message(error: object) -> object:
    """On OpenAI's routes, and so on what is not there below /v1, the error is an object that has it."""
    return error.get("message") if isinstance(error, dict) else error


def error_from_event(event: Mapping[str, object], request_id: str | None) -> ApiError:
    """The exception for an error that arrived inside a stream whose status was 200 already."""
    error_type = str(event.get("error_type", ""))
    status, error_class = ROW_OF_TYPE.get(error_type, (200, ApiError))
    return error_class(str(event["error"]), status, error_type or "unknown", request_id)


def json_object(response: httpx.Response) -> Mapping[str, object]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def seconds_to_wait(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds, given as a number or as an HTTP date (RFC 9110, 10.2.3); None when it is neither."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())
