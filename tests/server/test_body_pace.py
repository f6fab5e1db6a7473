"""A body must come within its time, and fast enough."""

import asyncio

import pytest
from starlette.types import Message

from server.body_pace import MIN_BYTES_PER_SECOND, PacedBody
from server.errors import BodyTooSlow


class Sender:
    """Sends these pieces, each after so many seconds on its own clock."""

    def __init__(self, *pieces: tuple[float, int]) -> None:
        self.now = 0.0
        self._pieces = list(pieces)

    async def __call__(self) -> Message:
        if not self._pieces:
            await asyncio.Event().wait()
        seconds, num_bytes = self._pieces.pop(0)
        self.now += seconds
        return {"type": "http.request", "body": b"x" * num_bytes, "more_body": bool(self._pieces)}


async def receive_all(sender: Sender, seconds: float = 60.0) -> int:
    paced, num_bytes = PacedBody(sender, seconds, lambda: sender.now), 0
    while not paced.is_whole:
        num_bytes += len((await paced())["body"])
    return num_bytes


def test_a_body_that_keeps_the_pace_comes_whole() -> None:
    pieces = [(1.0, MIN_BYTES_PER_SECOND)] * 20
    assert asyncio.run(receive_all(Sender(*pieces))) == 20 * MIN_BYTES_PER_SECOND


def test_a_body_below_the_pace_is_given_up_after_the_grace() -> None:
    with pytest.raises(BodyTooSlow, match="only 60 bytes of the body came in 6"):
        asyncio.run(receive_all(Sender(*[(1.0, 10)] * 20)))


def test_a_fast_body_that_does_not_end_is_given_up_too() -> None:
    with pytest.raises(BodyTooSlow):
        asyncio.run(receive_all(Sender(*[(1.0, 1 << 20)] * 100)))


def test_after_the_body_waiting_is_free() -> None:
    async def leave() -> Message:
        sender = Sender((0.0, 5))
        paced = PacedBody(sender, 0.01, lambda: sender.now)
        await paced()
        waiting = asyncio.create_task(paced())  # type: ignore[arg-type]
        done, _ = await asyncio.wait({waiting}, timeout=0.05)
        waiting.cancel()
        assert not done
        return {}

    asyncio.run(leave())
