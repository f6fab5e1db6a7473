"""What waits for a turn of its own: in order, one a turn, or all at once where there will be no more turns."""

import asyncio

from server.turns import Turns


def test_others_come_between_things_that_are_done_in_their_order() -> None:
    done: list[str] = []
    turns = Turns(done.append)

    async def add() -> None:
        loop = asyncio.get_running_loop()
        for item in "abc":
            turns.add(item)
        loop.call_soon(done.append, "|")
        await asyncio.sleep(0)
        loop.call_soon(done.append, "|")
        for _ in range(5):
            await asyncio.sleep(0)
        turns.add("d")
        assert "".join(done) == "a|b|c"
        await asyncio.sleep(0)

    asyncio.run(add())
    assert "".join(done) == "a|b|cd"


def test_what_is_left_can_be_done_at_once_and_then_is_done_no_more() -> None:
    done: list[str] = []
    turns = Turns(done.append)

    async def add() -> None:
        for item in "abc":
            turns.add(item)
        turns.finish()
        assert done == ["a", "b", "c"]
        turns.add("d")
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(add())
    assert done == ["a", "b", "c", "d"]
