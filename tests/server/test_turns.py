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


def test_the_more_waits_the_more_is_done_in_a_turn_and_what_fails_stops_nothing() -> None:
    done: list[int] = []

    def do(item: int) -> None:
        done.append(item)
        if item == 7:
            raise ValueError(item)

    async def add() -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
        turns, by_turn = Turns(do), []
        for item in range(20):
            turns.add(item)
        while len(done) < 20:
            before = len(done)
            await asyncio.sleep(0)
            by_turn.append(len(done) - before)
        return by_turn

    failures: list[Exception] = []
    by_turn = asyncio.run(add())
    assert by_turn[:2] == [3, 3]
    assert by_turn[-5:] == [1] * 5
    assert done == list(range(20))
    assert [str(failure) for failure in failures] == ["7"]
