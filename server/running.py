"""Runs the rows of one request, all at once, to their ends, and tells what they add.

Knows rows and deadlines. Knows nothing of how an answer is written.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from prefix_store.errors import StoreError
from prefix_store.tasks import Served
from server.errors import DeadlinePassed, NotFinite, ServerError
from server.failure_watch import MAX_FAILURES, WITHIN
from server.generation import Generation
from server.mailboxes import Mailbox
from server.reading import Added, Reading, Sample
from server.rows import Row
from server.services import Services


class Patience:
    """Waits at one mailbox, and gives up when the queue or the whole request takes too long.

    Made when the work is queued: how slowly its body came is not the engine's time.
    """

    def __init__(self, services: Services, mailbox: Mailbox) -> None:
        queued_at = time.monotonic()
        self._mailbox = mailbox
        self._interval = services.settings.keep_alive_interval
        self._queue_timeout = services.settings.queue_timeout
        self._request_timeout = services.settings.request_timeout
        self._gives_up_at = queued_at + self._request_timeout
        self._queued_until = queued_at + self._queue_timeout

    async def wait(self) -> None:
        """Until there is something to do, or a keep-alive is due. Raises `DeadlinePassed`, or as `Mailbox.wait`."""
        if self._mailbox.has_begun:  # the first letter comes with the slot, if only to say so
            self._queued_until = self._gives_up_at
        now = time.monotonic()
        if now >= self._gives_up_at:
            raise DeadlinePassed(f"the request took longer than {self._request_timeout:g} s")
        if now >= self._queued_until:
            raise DeadlinePassed(f"the request waited longer than {self._queue_timeout:g} s for a slot")
        await self._mailbox.wait(min(self._interval, self._gives_up_at - now, self._queued_until - now))


def samples_of(services: Services, generations: Sequence[Generation]) -> list[Sample]:
    """The rows of a request, still empty: prompt by prompt."""
    return [
        Sample(generation, request, _row(services, generation))
        for generation in generations
        for request in generation.rows
    ]


def best_first(samples: Sequence[Sample]) -> list[Sample]:
    """By mean log-probability."""
    return sorted(samples, key=lambda sample: -sample.row.mean_logprob)


async def run(services: Services, samples: Sequence[Sample]) -> None:
    """Run all rows to their ends."""
    async with aclosing(_run(services, samples, is_streaming=False)) as steps:
        async for _ in steps:
            pass


def run_streaming(services: Services, samples: Sequence[Sample]) -> AsyncGenerator[Added, None]:
    """Run all rows: what some of them add, as it comes; nothing where a keep-alive is due."""
    return _run(services, samples, is_streaming=True)


async def _run(services: Services, samples: Sequence[Sample], *, is_streaming: bool) -> AsyncGenerator[Added, None]:
    """The rows are one request's: one tenant's, of one task or mix. One that fails ends them all."""
    generation, requests = samples[0].generation, [sample.request for sample in samples]
    num_slots, max_queued = generation.num_slots, generation.caller.principal.limits.max_queued
    request_ids = [request.request_id for request in requests]
    reading = Reading(services, samples, is_streaming=is_streaming)
    with (
        services.live.owned(request_ids, generation.caller.tenant, generation.asked.name),
        services.engine.submitted(
            *requests,
            read=reading.read,
            place=generation.caller.place,
            num_rows=num_slots,
            max_queued=max_queued,
        ) as mailbox,
    ):
        patience = Patience(services, mailbox)
        try:
            while reading.num_open:
                try:
                    await patience.wait()
                except ServerError as error:
                    if isinstance(error, NotFinite):
                        # though the client may leave meanwhile
                        await asyncio.shield(_note_failure(services, generation.asked.parts[error.place].served))
                    if added := reading.take():
                        yield added  # what came before the failure is not lost with it
                    raise
                yield reading.take()
            if added := reading.take():
                yield added  # the last words came while those before them were being written
        finally:
            reading.account()


def _row(services: Services, generation: Generation) -> Row:
    parameters = generation.parameters
    return Row(services.tokenizer, parameters.stop or (), has_beams=parameters.num_slots > 1)


async def _note_failure(services: Services, served: Served | None) -> None:
    """This version has failed a row: the third time within ten minutes it is served no more."""
    if served is not None and services.failures.note(served):
        reason = f"{MAX_FAILURES} of its rows failed within {WITHIN / 60:g} minutes"
        services.log.error("quarantined", tenant=served.tenant, task_id=served.task_id, version=served.version)
        version = (served.tenant, served.task_id, served.version)
        try:
            await services.write(services.store.quarantine, *version, reason, served.prefix.revision)
        except StoreError as error:  # it was deleted meanwhile, or the disk is full: the row has failed all the same
            services.log.warning("not_quarantined", reason=str(error))
