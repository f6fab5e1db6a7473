"""The Python client, sync and async.

Knows how each of the two waits. What the verbs are stands in calls.py, how they are carried out in carrier.py, once for
both.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from clients import calls
from clients.calls import Call, TaskOrMix
from clients.carrier import Carrier
from clients.errors import PolyprefixError
from clients.loop_thread import LoopThread, result_of
from clients.order import in_order
from clients.progress_bar import progress_bar
from clients.results import Generation, StreamEvent
from clients.retries import Retries

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
ANSWER_SECONDS = 130.0  # a little more than the server's own limit of 120 s for one request, so that its words arrive
MAX_AHEAD = 4  # answers of `map` that may wait for a slower one before them, for each request in flight

TaskForEach = TaskOrMix | Iterable[TaskOrMix]


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


@dataclass(eq=False, repr=False)
class BaseClient:
    """What both clients are made from, and their verbs.

    `timeout` is how many seconds may pass without a byte, `transport` is httpx's. Raises `ApiError` where the server
    says no, `ConnectionFailed` where none answers, `UnexpectedAnswer` where something else does, `InvalidRequest`,
    `InvalidTaskId` and `InvalidUrl` where there is nothing to send.
    """

    base_url: str = DEFAULT_URL
    _: KW_ONLY
    api_key: str | None = None
    timeout: float = ANSWER_SECONDS
    retries: Retries = field(default_factory=Retries)
    transport: httpx.AsyncBaseTransport | None = None

    def __post_init__(self) -> None:
        self._carrier = Carrier(self.base_url, self.api_key, self.timeout, self.retries, self.transport)

    generate = Verb(calls.generate)
    upload = Verb(calls.upload)
    upload_text = Verb(calls.upload_text)
    tasks = Verb(calls.tasks)
    task = Verb(calls.task)
    download = Verb(calls.download)
    use_version = Verb(calls.use_version)
    split_traffic = Verb(calls.split_traffic)
    set_config = Verb(calls.set_config)
    delete = Verb(calls.delete)
    health = Verb(calls.health)
    ready = Verb(calls.ready)
    info = Verb(calls.info)
    metrics = Verb(calls.metrics)


class Client(BaseClient):
    """Talks to one server; a context manager, and safe to share between threads.

    Its requests run in an event loop in a thread of its own, which starts with the first of them and ends with `close`.
    A process that forks makes its clients afterwards.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._thread = LoopThread(self._carrier.close)

    def stream(self, task: TaskOrMix, inputs: str, **parameters: Any) -> Generator[StreamEvent, None, None]:
        """As `generate`, token by token. The request goes out with the first `next`, which is where refusals raise.
        Leaving early closes its connection, and the server stops."""
        yield from self._thread.iterate(self._carrier.stream(calls.stream(task, inputs, **parameters)))

    def map(
        self,
        task: TaskForEach,
        inputs: Iterable[str],
        *,
        concurrency: int = 64,
        progress: bool = False,
        **parameters: Any,
    ) -> Generator[Generation, None, None]:
        """As `generate` for each input, at most `concurrency` at a time; the answers come in the inputs' order.

        `task` is one for all inputs, or an iterable with one for each. Inputs are taken as they are needed, so there
        may be more of them than fit in memory. `progress` shows a bar where standard error is a terminal. The first
        error raises in its input's place and ends the rest; `try_map` goes on."""
        with closing(self.try_map(task, inputs, concurrency=concurrency, progress=progress, **parameters)) as outcomes:
            for outcome in outcomes:
                yield answer_of(outcome)

    def try_map(
        self,
        task: TaskForEach,
        inputs: Iterable[str],
        *,
        concurrency: int = 64,
        progress: bool = False,
        **parameters: Any,
    ) -> Generator[Generation | PolyprefixError, None, None]:
        """As `map`, but an error is given in the place of its input's answer, and the rest goes on."""
        outcomes = self.outcomes(calls.generate_each(task, inputs, parameters), concurrency)
        with progress_bar(inputs, shown=progress) as advance, closing(outcomes):
            for outcome in outcomes:
                advance()
                yield outcome

    def outcomes(self, calls: Iterable[Call[T]], concurrency: int) -> Generator[T | PolyprefixError, None, None]:
        """What comes of each call, in order, at most `concurrency` at a time: its answer, or an error of ours."""
        free = turns(concurrency)

        def start(call: Call[T]) -> Future[T | PolyprefixError]:
            return self._thread.start(self._carrier.outcome, call, free)

        with closing(in_order(map(start, calls), MAX_AHEAD * concurrency)) as futures:
            for future in futures:
                yield result_of(future)

    def carry_out(self, call: Call[T]) -> T:
        return self._thread.run(self._carrier.carry_out, call)

    def close(self) -> None:
        """End what is in flight, and the thread. Closing it again does nothing."""
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncClient(BaseClient):
    """`Client` for asyncio; one client carries any number of requests at once."""

    async def stream(self, task: TaskOrMix, inputs: str, **parameters: Any) -> AsyncGenerator[StreamEvent, None]:
        """As `Client.stream`. To leave early, wrap it in `contextlib.aclosing`: that closes the connection at once."""
        async with aclosing(self._carrier.stream(calls.stream(task, inputs, **parameters))) as events:
            async for event in events:
                yield event

    async def map(
        self,
        task: TaskForEach,
        inputs: Iterable[str],
        *,
        concurrency: int = 64,
        progress: bool = False,
        **parameters: Any,
    ) -> AsyncGenerator[Generation, None]:
        """As `Client.map`. To leave early, wrap it in `contextlib.aclosing`."""
        outcomes = self.try_map(task, inputs, concurrency=concurrency, progress=progress, **parameters)
        async with aclosing(outcomes):
            async for outcome in outcomes:
                yield answer_of(outcome)

    async def try_map(
        self,
        task: TaskForEach,
        inputs: Iterable[str],
        *,
        concurrency: int = 64,
        progress: bool = False,
        **parameters: Any,
    ) -> AsyncGenerator[Generation | PolyprefixError, None]:
        """As `Client.try_map`."""
        outcomes = self.outcomes(calls.generate_each(task, inputs, parameters), concurrency)
        with progress_bar(inputs, shown=progress) as advance:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    advance()
                    yield outcome

    async def outcomes(self, calls: Iterable[Call[T]], concurrency: int) -> AsyncGenerator[T | PolyprefixError, None]:
        """As `Client.outcomes`."""
        free = turns(concurrency)

        def start(call: Call[T]) -> asyncio.Task[T | PolyprefixError]:
            outcome = self._carrier.outcome(call, free)
            return asyncio.create_task(outcome)

        with closing(in_order(map(start, calls), MAX_AHEAD * concurrency)) as futures:
            for future in futures:
                yield await future

    async def carry_out(self, call: Call[T]) -> T:
        return await self._carrier.carry_out(call)

    async def close(self) -> None:
        await self._carrier.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def turns(concurrency: int) -> asyncio.Semaphore:
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; expected 1 or more")
    return asyncio.Semaphore(concurrency)


def answer_of(outcome: T | PolyprefixError) -> T:
    if isinstance(outcome, PolyprefixError):
        raise outcome
    return outcome
