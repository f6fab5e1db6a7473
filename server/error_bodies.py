"""An error as JSON, in the dialect of the route that was asked.

Knows the table of errors and the two forms. Knows nothing of how answers are sent.
"""

from typing import Any

from prefix_store.errors import UnknownTask
from server.errors import InvalidValue, NoSuchTask, kind_of, message_of

OPENAI_ROUTES = "/v1/"
# OpenAI's own names, where it has some; else ours.
OPENAI_CODES = {
    "unauthorized": "invalid_api_key",
    "rate_limited": "rate_limit_exceeded",
    "overloaded": "rate_limit_exceeded",
}


def error_body(error: Exception, path: str, request_id: str) -> dict[str, Any]:
    """`path` is that of the request: OpenAI's routes have OpenAI's form."""
    if path.startswith(OPENAI_ROUTES):
        return {"error": _openai_error(error, request_id)}
    return {"error": message_of(error, request_id), "error_type": kind_of(error).error_type}


def _openai_error(error: Exception, request_id: str) -> dict[str, str | None]:
    kind = kind_of(error)
    is_unknown_model = isinstance(error, UnknownTask | NoSuchTask)
    field = error.field if isinstance(error, InvalidValue) else None
    return {
        "message": message_of(error, request_id),
        "type": _openai_type(kind.status),
        "param": "model" if is_unknown_model else field,
        "code": "model_not_found" if is_unknown_model else OPENAI_CODES.get(kind.error_type, kind.error_type),
    }


def _openai_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
