"""How what a step added is written while others wait for the event loop."""

import asyncio
import threading
from typing import Any

import pytest
from starlette.responses import Response

from server import token_stream
from server.http import written


class Slow:
    """Writes each row as it is called, and takes the event loop for it."""

    def of_step(self, added: dict[Any, Any]) -> bytes:
        return b"".join(name.encode() for name in added)

    def at_end(self) -> bytes:
        return b""


def test_others_have_their_turns_between_the_rows_of_a_long_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream, "LONG_TURN", 0.0)
    turns: list[str] = []

    async def write() -> bytes:
        loop = asyncio.get_running_loop()
        loop.call_soon(turns.append, "other")
        piece = await token_stream._written(Slow(), {"a": [], "b": [], "c": []})  # type: ignore[dict-item]
        turns.append("written")
        return piece

    assert asyncio.run(write()) == b"abc"
    assert turns == ["other", "written"]


@pytest.mark.parametrize("is_long", [False, True])
def test_a_long_answer_is_written_beside_the_event_loop(is_long: bool) -> None:
    def write() -> Response:
        return Response(str(threading.get_ident()))

    answer = asyncio.run(written(write, is_long=is_long))
    assert (answer.body != str(threading.get_ident()).encode()) == is_long
