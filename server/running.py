"""Runs the rows of one request, all at once, to their ends; tells what they add, and puts it on the tenant's account.

Knows rows, deadlines and accounts. Knows nothing of how an answer is written.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.trace import get_tracer

from batching.types import Compiled, Request
from prefix_store.errors import StoreError
from prefix_store.tasks import Served
from prefix_store.usage import Usage
from server.engine_messages import Letter
from server.errors import DeadlinePassed, NotFinite, ServerError
from server.failure_watch import MAX_FAILURES, WITHIN
from server.generation import Generation
from server.mailboxes import Mailbox
from server.rows import Row, Token
from server.services import Services
from server.tracing import trace_row


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One row of a request: what was asked, and what has come of it so far."""

    generation: Generation
    request: Request
    row: Row


Added: TypeAlias = dict[Sample, list[Token]]  # what some rows have said since the last time


class Patience:
    """Reads one mailbox, and gives up when the queue or the whole request takes too long.

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

    async def take(self) -> list[Letter]:
        """What has come; nothing where a keep-alive is due. Raises `DeadlinePassed`."""
        now = time.monotonic()
        if now >= self._gives_up_at:
            raise DeadlinePassed(f"the request took longer than {self._request_timeout:g} s")
        if now >= self._queued_until:
            raise DeadlinePassed(f"the request waited longer than {self._queue_timeout:g} s for a slot")
        letters = await self._mailbox.take(min(self._interval, self._gives_up_at - now, self._queued_until - now))
        if letters:  # the first one comes with the slot, if only to say so
            self._queued_until = self._gives_up_at
        return letters

    async def next(self) -> list[Letter]:
        """As `take`, but waits on through keep-alives."""
        while not (letters := await self.take()):
            pass
        return letters


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
    async with aclosing(run_streaming(services, samples)) as steps:
        async for _ in steps:
            pass


async def run_streaming(services: Services, samples: Sequence[Sample]) -> AsyncGenerator[Added, None]:
    """Run all rows: what each of them adds, as it comes; nothing where a keep-alive is due.

    The rows are one request's: one tenant's, of one task or mix. One that fails ends them all.
    """
    by_id = {sample.request.request_id: sample for sample in samples}
    generation = samples[0].generation
    num_slots, max_queued = generation.num_slots, generation.caller.principal.limits.max_queued
    requests = [sample.request for sample in samples]
    with (
        services.live.owned(by_id, generation.caller.tenant, generation.asked.name),
        services.engine.submitted(*requests, num_rows=num_slots, max_queued=max_queued) as mailbox,
    ):
        patience = Patience(services, mailbox)
        try:
            while any(sample.row.finish_reason is None for sample in samples):
                added: Added = {}
                try:
                    for letter in await patience.take():
                        sample = by_id[letter.request_id]
                        added.setdefault(sample, []).extend(_read(services, sample, letter))
                except ServerError as error:
                    if any(added.values()):
                        yield added  # what came before the failure is not lost with it
                    if isinstance(error, NotFinite):
                        await _note_failure(services, generation.asked.parts[error.place].served)
                    raise
                yield added
        finally:
            for sample in samples:
                _account(services, sample)


def _row(services: Services, generation: Generation) -> Row:
    parameters = generation.parameters
    return Row(services.tokenizer, parameters.stop or (), has_beams=parameters.num_slots > 1)


def _read(services: Services, sample: Sample, letter: Letter) -> list[Token]:
    assert not isinstance(letter, Compiled), "an answer to Compile in a request's mailbox"
    row, arrived_at = sample.row, sample.generation.caller.arrived_at
    if row.finish_reason is not None:
        return []
    was_queued = row.admitted_at is None
    tokens = row.read(letter)
    if was_queued:
        services.metrics.queue_seconds.observe(max(0.0, letter.admitted_at - arrived_at))
    if tokens:
        _time(services, sample)
    if row.finish_reason is not None:
        services.engine.abort(letter.request_id)  # the engine knows nothing of stop strings
    return tokens


def _time(services: Services, sample: Sample) -> None:
    """Measure how long a row's tokens, just read, were awaited."""
    metrics, row, caller = services.metrics, sample.row, sample.generation.caller
    now = time.monotonic()
    if row.last_token_at is None:
        row.first_token_at = now
        metrics.first_token_seconds.observe(now - caller.arrived_at)
        services.live.observe_first_token(caller.tenant, now - caller.arrived_at)
    else:
        metrics.inter_token_seconds.observe(now - row.last_token_at)
    row.last_token_at = now
    if row.finish_reason is not None:
        metrics.end_to_end_seconds.observe(now - caller.arrived_at)


def _account(services: Services, sample: Sample) -> None:
    """Put a row's tokens on its tenant's account, however it ended; one that never ran costs nothing.

    A mix has a row for each of its tasks, and each of those is counted.
    """
    generation, row = sample.generation, sample.row
    if row.admitted_at is None:
        return
    num_prompt_tokens, num_generated_tokens = generation.num_prompt_tokens, len(row.tokens)
    used = Usage(
        prompt_tokens=num_prompt_tokens,
        generated_tokens=num_generated_tokens,
        seconds=time.monotonic() - row.admitted_at,
    )
    caller = generation.caller
    for part in generation.asked.parts:
        services.metrics.prompt_tokens.inc(num_prompt_tokens)
        services.metrics.generated_tokens.inc(num_generated_tokens)
        services.accounts.observe_row(caller.tenant, part.name, num_prompt_tokens, num_generated_tokens)
        services.limits.charge(caller.principal, num_prompt_tokens, num_generated_tokens)
        services.store.usage.add(caller.tenant, part.name, used)
    trace_row(
        get_tracer("polyprefix"),
        {"polyprefix.tenant": caller.tenant, "polyprefix.task": generation.asked.name},
        caller.arrived_at,
        row.admitted_at,
        row.first_token_at,
        row.last_token_at,
    )


async def _note_failure(services: Services, served: Served | None) -> None:
    """This version has failed a row: the third time within ten minutes it is served no more."""
    if served is not None and services.failures.note(served):
        reason = f"{MAX_FAILURES} of its rows failed within {WITHIN / 60:g} minutes"
        services.log.error("quarantined", tenant=served.tenant, task_id=served.task_id, version=served.version)
        try:
            await services.write(services.store.quarantine, served.tenant, served.task_id, served.version, reason)
        except StoreError as error:  # it was deleted meanwhile, or the disk is full: the row has failed all the same
            services.log.warning("not_quarantined", reason=str(error))
