"""The Python client, sync and async.

Knows how to carry out a `Call`: send it, repeat it as `Retries` says, read the answer, turn faults into our errors.
What the verbs are stands in calls.py, once for both clients.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from clients import calls
from clients.calls import Call
from clients.errors import ConnectionFailed, InvalidRequest, InvalidUrl, TimedOut, error_from_response
from clients.results import StreamEvent
from clients.retries import Retries

P = ParamSpec("P")
T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport")

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 130.0  # a little more than the server's own limit of 120 s for one request, so that its words arrive


class Verb(Generic[P, T]):
    """A method of both clients, told by the function that builds its `Call`: `f(…) -> Call[T]` gives
    `client.f(…) -> T` and `await async_client.f(…) -> T`, with the same parameters and docstring."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Call[T]]: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> Callable[P, Any]:
        if client is None:
            return self._build

        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.carry_out(self._build(*args, **kwargs))

        return method


class BaseClient(Generic[Http, Transport]):
    """What both clients are made from, and their verbs. `transport` is httpx's."""

    _make_http: Callable[..., Http]

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = ANSWER_SECONDS,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        transport: Transport | None = None,
    ) -> None:
        self._retries = retries
        self._http: Http = self._make_http(
            base_url=checked_url(base_url),
            headers={} if api_key is None else {"authorization": f"Bearer {checked_key(api_key)}"},
            # No limit on the wait for one of our own connections: the server's queue decides who is refused.
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            transport=transport,
        )

    generate = Verb(calls.generate)
    upload = Verb(calls.upload)
    upload_text = Verb(calls.upload_text)
    tasks = Verb(calls.tasks)
    task = Verb(calls.task)
    download = Verb(calls.download)
    use_version = Verb(calls.use_version)
    set_config = Verb(calls.set_config)
    delete = Verb(calls.delete)
    health = Verb(calls.health)
    ready = Verb(calls.ready)
    info = Verb(calls.info)
    metrics = Verb(calls.metrics)


class Client(BaseClient[httpx.Client, httpx.BaseTransport]):
    """Talks to one server; a context manager, and safe to share between threads.

    `timeout` is how many seconds may pass without a byte. Raises `ApiError` where the server says no,
    `ConnectionFailed` where none answers, `UnexpectedAnswer` where something else does, `InvalidRequest`,
    `InvalidTaskId` and `InvalidUrl` where there is nothing to send.
    """

    _make_http = httpx.Client

    def stream(self, task: str | None, inputs: str, **parameters: Any) -> Iterator[StreamEvent]:
        """As `generate`, token by token. The request goes out with the first `next`, which is where refusals raise."""
        call = calls.stream(task, inputs, **parameters)
        with self._answer(call) as response:
            events = call.result(response)
            for chunk in response.iter_bytes():
                yield from events.feed(chunk)
            events.end()

    def carry_out(self, call: Call[T]) -> T:
        with self._answer(call) as response:
            response.read()
            return call.result(response)

    @contextmanager
    def _answer(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """A success, its body not yet read."""
        with faults_told(self._http.base_url):
            for attempt in count():
                response = self._http.send(call.request(self._http), stream=True)
                try:
                    if response.is_success:
                        yield response
                        return
                    response.read()
                finally:
                    response.close()
                time.sleep(seconds_before_repeating(call, response, attempt, self._retries))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncClient(BaseClient[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """`Client` for asyncio; one client carries any number of requests at once."""

    _make_http = httpx.AsyncClient

    async def stream(self, task: str | None, inputs: str, **parameters: Any) -> AsyncIterator[StreamEvent]:
        """As `Client.stream`. To leave early, wrap it in `contextlib.aclosing`: that closes the connection at once."""
        call = calls.stream(task, inputs, **parameters)
        async with self._answer(call) as response:
            events = call.result(response)
            async for chunk in response.aiter_bytes():
                for event in events.feed(chunk):
                    yield event
            events.end()

    async def carry_out(self, call: Call[T]) -> T:
        async with self._answer(call) as response:
            await response.aread()
            return call.result(response)

    @asynccontextmanager
    async def _answer(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        with faults_told(self._http.base_url):
            for attempt in count():
                response = await self._http.send(call.request(self._http), stream=True)
                try:
                    if response.is_success:
                        yield response
                        return
                    await response.aread()
                finally:
                    await response.aclose()
                await asyncio.sleep(seconds_before_repeating(call, response, attempt, self._retries))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidUrl(base_url) from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidUrl(base_url)
    return url


def checked_key(api_key: str) -> str:
    """The message leaves the key out: it is a secret, and messages end up in logs."""
    if not (api_key.isascii() and api_key.isprintable()):
        raise InvalidRequest("the API key holds characters that no header can carry; expected printable ASCII")
    return api_key


def seconds_before_repeating(call: Call[Any], response: httpx.Response, attempt: int, retries: Retries) -> float:
    """How long to wait before the call is sent again; raises the refusal as our error when it is not."""
    error = error_from_response(response)
    seconds = retries.seconds(error, attempt, repeatable=call.repeatable)
    if seconds is None:
        raise error
    return seconds


@contextmanager
def faults_told(url: httpx.URL) -> Iterator[None]:
    """Turns httpx's errors of connection into ours, which say where and what to do."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(str(url), reason_of(error)) from error
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise ConnectionFailed(str(url), reason_of(error)) from error


def reason_of(error: Exception) -> str:
    return str(error) or type(error).__name__
