"""Rows that run, and somebody who reads what they say when it likes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from server.access import LOCAL
from server.caller import Caller
from server.generation import prepare
from server.reading import Added
from server.room import Place
from server.running import run_streaming, samples_of
from server.schemas import GenerateBody
from tests.server.fakes import EchoEngine, Gate


def test_what_was_said_while_nobody_read_comes_at_once_and_whole(start) -> None:  # type: ignore[no-untyped-def]
    gate = Gate()
    server = start(EchoEngine(before_step=gate))

    def on_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, server.loop).result(20)

    async def ask() -> AsyncGenerator[Added, None]:
        place = Place(server.services.engine.room, LOCAL.tenant)
        caller, body = Caller(LOCAL, "slow", time.monotonic(), place), GenerateBody(inputs="abcdef", stream=True)
        generation = await prepare(server.services, caller, body, None)
        return run_streaming(server.services, samples_of(server.services, [generation]))

    async def first() -> list[Added]:
        return [await anext(steps)]

    async def others() -> list[Added]:
        return [added async for added in steps]

    steps = on_loop(ask())
    gate.allow(1)
    said = on_loop(first())
    gate.open()
    server.wait_for_open_rows(0)
    said += on_loop(others())
    assert ["".join(token.text for tokens in added.values() for token in tokens) for added in said] == ["a", "bcdef"]
