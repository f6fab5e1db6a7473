"""What each verb sends and how its answer is read: all that the sync and the async client share.

Knows routes, bodies and headers. Does no I/O: a `Call` is a value that either client carries out. The functions'
signatures and docstrings are the clients' own (see `Verb` in client.py), `Call[X]` read as "X".
"""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import httpx

from clients.errors import InvalidRequest, InvalidTaskId, UnexpectedAnswer
from clients.results import Generation, Json, ServerInfo, Task, TaskPage, Upload
from clients.stream import EventReader

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (bytes sent, bytes in all)
# A task's id; several with their weights, `{"mix": {"poet": 0.7, "clerk": 0.3}}`; or None for the bare backbone.
TaskOrMix = str | Mapping[str, Mapping[str, float]] | None

TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One exchange with the server. `repeatable`: carrying it out twice does no more than carrying it out once."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    json: object = None
    content: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None
    repeatable: bool = True

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request, ready to send. Raises `InvalidRequest` when a value cannot be written down."""
        try:
            request = http.build_request(
                self.method, self.path, json=self.json, content=self.content, params=self.params, headers=self.headers
            )
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"the request cannot be sent: {reason_of(error)}") from error
        if self.progress is not None and self.content is not None:
            request.stream = ReportingStream(self.content, self.progress)
        return request

    def result(self, response: httpx.Response) -> T:
        """The answer, read. Raises `UnexpectedAnswer` when a field is missing or of another kind."""
        try:
            return self.read(response)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            body = response.text[:200]
            raise UnexpectedAnswer(f"the answer of {response.url} is not one of ours ({error!r}): {body!r}") from error


class ReportingStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that tells how much of it was sent."""

    def __init__(self, content: bytes, progress: Progress) -> None:
        self._content = content
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        num_bytes = len(self._content)
        for start in range(0, num_bytes, CHUNK_BYTES):
            yield self._content[start : start + CHUNK_BYTES]
            self._progress(min(start + CHUNK_BYTES, num_bytes), num_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in iter(self):
            yield chunk


def reason_of(error: ValueError | TypeError) -> str:
    """In ASCII: what cannot be sent can seldom be printed."""
    if isinstance(error, UnicodeEncodeError):
        refused = error.object[error.start : error.end]
        return f"{refused!a} has no {error.encoding.upper()} form (it may come from bytes that are not UTF-8)"
    return str(error)


def generate(task: TaskOrMix, inputs: str, **parameters: Any) -> Call[Generation]:
    """Continue `inputs` as `task` does; None is the bare backbone, `{"mix": {"poet": 0.7, "clerk": 0.3}}` several at
    once. `parameters` are the contract's: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`, `stop`,
    `num_beams`, `details` …"""
    return Call("POST", "/generate", read_generation, json=generate_body(task, inputs, parameters))


def generate_each(
    task: TaskOrMix | Iterable[TaskOrMix], inputs: Iterable[str], parameters: Json
) -> Iterator[Call[Generation]]:
    """A `generate` for each of the inputs; `task` is one for all, or an iterable with one for each."""
    if isinstance(inputs, str):
        raise TypeError("inputs is one text; expected an iterable of texts")
    if task is None or isinstance(task, str | Mapping):
        return (generate(task, text, **parameters) for text in inputs)
    return (generate(each, text, **parameters) for each, text in zip(task, inputs, strict=True))


def stream(task: TaskOrMix, inputs: str, **parameters: Any) -> Call[EventReader]:
    body = generate_body(task, inputs, parameters)
    return Call("POST", "/generate_stream", event_reader, json=body, headers={"accept": "text/event-stream"})


def upload(
    task: str,
    file: Path | str | bytes | BinaryIO,
    *,
    serve: bool = True,
    progress: Progress | None = None,
    if_match: str | None = None,
    if_none_match: bool = False,
) -> Call[Upload]:
    """Make a safetensors file the task's next version. `file` is a path, the bytes, or an open binary file.

    With `serve` false it gets no requests until `split_traffic` or `use_version` says so. `progress` is called with
    (bytes sent, bytes in all). `if_match` is the sha256 of the version that must be the served one, `if_none_match`
    asks for a new task; else `PreconditionFailed`."""
    content = read_bytes(file)
    return Call(
        "PUT",
        task_path(task),
        read_upload,
        content=content,
        params=upload_params(serve),
        headers={
            "content-type": "application/octet-stream",
            "x-content-sha256": hashlib.sha256(content).hexdigest(),
            **conditions(if_match, if_none_match),
        },
        progress=progress,
        repeatable=if_match is None and not if_none_match,  # else a second try could fail on what the first one did
    )


def upload_text(task: str, text: str, *, serve: bool = True) -> Call[Upload]:
    """Compile a fixed text (an instruction, worked examples) into the task's next version; `serve` as in `upload`."""
    return Call("PUT", task_path(task), read_upload, json={"text": text}, params=upload_params(serve))


def tasks(limit: int = 100, after: str | None = None) -> Call[TaskPage]:
    """The tasks that the caller may see, `limit` at a time, those whose ids come after `after`."""
    params: dict[str, str | int] = {"limit": limit} | ({} if after is None else {"after": after})
    return Call("GET", "/tasks", read_tasks, params=params)


def task(task_id: str) -> Call[Task]:
    """One task with its versions. Raises `NotFound`, also for another tenant's."""
    return Call("GET", task_path(task_id), read_task)


def download(task: str, version: int | None = None) -> Call[bytes]:
    """The file that was uploaded, byte for byte; the served version's without `version`."""
    params = {} if version is None else {"version": version}
    return Call("GET", f"{task_path(task)}/prefix", lambda response: response.content, params=params)


def use_version(task: str, version: int, *, if_match: str | None = None, **config: Any) -> Call[Task]:
    """Serve that version from now on; a roll-back, say. `config` is `set_config`'s, and holds from the same moment."""
    return change(task, {"version": version} | ({"config": config} if config else {}), if_match)


def split_traffic(task: str, weights: Mapping[int, float] | None, *, if_match: str | None = None) -> Call[Task]:
    """Draw each request's version by these weights, `{3: 0.9, 4: 0.1}` say, until an upload, `use_version` or None
    ends it."""
    traffic = None if weights is None else {str(version): weight for version, weight in weights.items()}
    return change(task, {"traffic": traffic}, if_match)


def set_config(task: str, **config: Any) -> Call[Task]:
    """Set the task's defaults: `description`, `prompt_template` with one `{inputs}`, `parameters`."""
    return change(task, {"config": config})


def change(task: str, patch: Json, if_match: str | None = None) -> Call[Task]:
    """All that `patch` names at once, or nothing of it."""
    headers, repeatable = conditions(if_match), if_match is None
    return Call("PATCH", task_path(task), read_task, json=patch, headers=headers, repeatable=repeatable)


def delete(task: str, *, if_match: str | None = None) -> Call[None]:
    """Remove the task with all its versions. Requests in flight finish on what they began with."""
    return Call("DELETE", task_path(task), lambda response: None, headers=conditions(if_match), repeatable=False)


def health() -> Call[None]:
    """Return when process and engine are alive, else raise."""
    return Call("GET", "/health", lambda response: None, repeatable=False)


def ready() -> Call[str]:
    """`ready` or `degraded`; raises `Unavailable` while the server starts or drains."""
    return Call("GET", "/ready", lambda response: str(response.json()["status"]), repeatable=False)


def info() -> Call[ServerInfo]:
    """What is served: the backbone, its limits, how many tasks."""
    return Call("GET", "/info", lambda response: ServerInfo.from_json(response.json()))


def metrics() -> Call[str]:
    """The server's counters, in Prometheus' text format."""
    return Call("GET", "/metrics", lambda response: response.text)


def task_path(task: str) -> str:
    """The task's route. Checked here, because `..` in a URL would name another route."""
    if not TASK_ID.fullmatch(task):
        raise InvalidTaskId(task)
    return f"/tasks/{task}"


def generate_body(task: TaskOrMix, inputs: str, parameters: Json) -> Json:
    return {"task_id": task, "inputs": inputs, "parameters": parameters}


def upload_params(serve: bool) -> dict[str, str | int]:
    return {} if serve else {"serve": "false"}


def conditions(if_match: str | None, if_none_match: bool = False) -> dict[str, str]:
    """`if_match` is the sha256 of the served version's upload, which is its entity tag."""
    match = {} if if_match is None else {"if-match": f'"{if_match}"'}
    return match | ({"if-none-match": "*"} if if_none_match else {})


def read_bytes(file: Path | str | bytes | BinaryIO) -> bytes:
    """All of it: a prefix is small, and what is held can be hashed and sent again."""
    if isinstance(file, bytes):
        return file
    return Path(file).read_bytes() if isinstance(file, str | Path) else file.read()


def read_generation(response: httpx.Response) -> Generation:
    return Generation.from_json(response.json())


def read_upload(response: httpx.Response) -> Upload:
    return Upload.from_json(response.json(), created=response.status_code == httpx.codes.CREATED)


def read_task(response: httpx.Response) -> Task:
    return Task.from_json(response.json())


def read_tasks(response: httpx.Response) -> TaskPage:
    return TaskPage.from_json(response.json())


def event_reader(response: httpx.Response) -> EventReader:
    return EventReader(str(response.url), response.headers.get("x-request-id"))
