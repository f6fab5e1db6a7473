"""Carries out calls over asyncio: the one core of the sync and the async client.

Knows how to send a `Call`, repeat it as `Retries` says, read its answer, and turn faults into our errors. Knows nothing
of verbs.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, TypeVar

import httpx

from clients.calls import Call
from clients.connections import Connections
from clients.errors import (
    ConnectionFailed,
    InvalidRequest,
    InvalidUrl,
    Overloaded,
    PolyprefixError,
    RateLimited,
    TimedOut,
    error_from_response,
)
from clients.results import StreamEvent
from clients.retries import Retries
from clients.stream import EventReader

T = TypeVar("T")

CONNECT_SECONDS = 5.0


class Carrier:
    """Made anywhere, used in one event loop."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: float,
        retries: Retries,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        url = checked_url(base_url)
        self._url = url.copy_with(userinfo=b"")  # messages tell it, and end up in logs
        self._retries = retries
        self._connections = Connections(
            base_url=self._url,
            auth=httpx.BasicAuth(url.username, url.password) if url.userinfo else None,
            headers={} if api_key is None else {"authorization": f"Bearer {checked_key(api_key)}"},
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
            transport=transport,
        )

    async def carry_out(self, call: Call[T]) -> T:
        async with self._answer(call) as response:
            await response.aread()
            return call.result(response)

    async def outcome(self, call: Call[T], free: asyncio.Semaphore) -> T | PolyprefixError:
        """What comes of one of many calls, once its turn has come: an error of ours is given back, not raised.

        The many may be more than the server has room for. One that is refused for that is sent again as often as it
        takes, as long as each wait is one that `Retries` allows: the others end in the meantime."""
        async with free:
            while True:
                try:
                    return await self.carry_out(call)
                except (Overloaded, RateLimited) as error:
                    seconds = self._retries.seconds(error, attempt=0, repeatable=True)
                    if seconds is None:
                        return error
                    await asyncio.sleep(max(seconds, self._retries.first_wait))  # a gateway may say 0, without end
                except PolyprefixError as error:
                    return error

    async def stream(self, call: Call[EventReader]) -> AsyncGenerator[StreamEvent, None]:
        async with self._answer(call) as response:
            events = call.result(response)
            async for chunk in response.aiter_bytes():
                for event in events.feed(chunk):
                    yield event
            events.end()

    @asynccontextmanager
    async def _answer(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """A success, its body not yet read."""
        with faults_told(self._url):
            async with self._connections.one() as connection:
                for attempt in count():
                    response = await connection.send(call.request(connection), stream=True)
                    try:
                        if response.is_success:
                            yield response
                            return
                        await response.aread()
                    finally:
                        await response.aclose()
                    await asyncio.sleep(seconds_before_repeating(call, response, attempt, self._retries))

    async def close(self) -> None:
        await self._connections.close()


def checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidUrl(base_url) from error
    if url.scheme not in {"http", "https"} or not url.host or url.query:
        raise InvalidUrl(base_url)
    return url


def checked_key(api_key: str) -> str:
    """The message leaves the key out: it is a secret, and messages end up in logs."""
    if not re.fullmatch("[!-~]+", api_key):
        raise InvalidRequest(
            "the API key is empty, or holds a space or what no header can carry; expected printable ASCII"
        )
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
    """The first cause's words, where it has any: what was made of it says less ("All connection attempts failed")."""
    return words_of_first(error) or type(error).__name__


def words_of_first(error: BaseException) -> str:
    wrapped = error.exceptions if isinstance(error, BaseExceptionGroup) else error.args
    inside = (cause for cause in (error.__cause__, *wrapped) if isinstance(cause, BaseException))
    own = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
    return next(map(words_of_first, inside), "") or own
