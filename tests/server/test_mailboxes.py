"""Waiting at a mailbox, and for a moment that is put off, without an engine."""

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from batching.types import StepOutput
from server.alarm import Alarm
from server.engine_messages import Letter
from server.errors import GenerationFailed, Unavailable
from server.mailboxes import Mailbox


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


def said(token_id: int) -> StepOutput:
    return StepOutput("a", (token_id,))


def test_who_waits_is_woken_where_reading_says_so_and_not_before() -> None:
    read: list[Letter] = []

    def is_third(letter: Letter) -> bool:
        read.append(letter)
        return len(read) == 3

    async def scenario() -> None:
        mailbox = Mailbox("acme", 1, is_third)
        waiting = asyncio.create_task(mailbox.wait(20))
        for token_id in range(3):
            await asyncio.sleep(0)
            assert not waiting.done()
            mailbox.put(said(token_id))
        await waiting
        mailbox.close()

    run(scenario())
    assert read == [said(0), said(1), said(2)]


def test_what_has_come_while_nobody_waited_is_not_waited_for() -> None:
    async def scenario() -> None:
        mailbox = Mailbox("acme", 1, lambda _: True)
        mailbox.put(said(0))
        mailbox.put(said(1))
        await mailbox.wait(3600)
        mailbox.close()

    run(scenario())


def test_a_wait_ends_when_it_was_long_enough() -> None:
    async def scenario() -> None:
        mailbox = Mailbox("acme", 1, lambda _: False)
        await mailbox.wait(0.01)
        await mailbox.wait(0.01)
        assert not mailbox.has_begun

    run(scenario())


def test_a_letter_that_cannot_be_read_ends_its_mailbox_and_the_first_reason_stays() -> None:
    read: list[Letter] = []

    def fails(letter: Letter) -> bool:
        read.append(letter)
        raise GenerationFailed("no")

    async def scenario() -> None:
        mailbox = Mailbox("acme", 1, fails)
        mailbox.put(said(0))
        mailbox.put(said(1))
        mailbox.fail(Unavailable("shutting down"))
        for _ in range(2):
            with pytest.raises(GenerationFailed, match="no"):
                await mailbox.wait(3600)

    run(scenario())
    assert read == [said(0)]


def test_a_mailbox_that_is_closed_leaves_nothing_for_the_garbage_collector() -> None:
    """At ten times its load a server had 150,000 such objects when it collected them, for half a second."""

    async def scenario() -> None:
        mailbox = Mailbox("acme", 1, lambda letter: True)
        mailbox.put(said(0))
        await mailbox.wait(60)
        mailbox.close()
        closed = weakref.ref(mailbox)
        del mailbox
        assert closed() is None

    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()


def test_an_alarm_that_is_put_off_rings_once_and_at_its_last_moment() -> None:
    async def scenario() -> None:
        loop, rung_at, rung = asyncio.get_running_loop(), [], asyncio.Event()

        def ring() -> None:
            rung_at.append(loop.time())
            rung.set()

        alarm, begun_at = Alarm(ring), loop.time()
        alarm.set(0.01)
        alarm.set(0.05)
        await rung.wait()
        assert rung_at[0] >= begun_at + 0.05
        alarm.set(3600)
        alarm.set(0.01)
        rung.clear()
        await rung.wait()
        assert len(rung_at) == 2
        alarm.close()

    run(scenario())


def test_an_alarm_that_is_unset_does_not_ring() -> None:
    async def scenario() -> None:
        later = asyncio.Event()
        alarm = Alarm(lambda: pytest.fail("it was unset"))
        alarm.set(0.01)
        alarm.unset()
        asyncio.get_running_loop().call_later(0.05, later.set)
        await later.wait()

    run(scenario())
