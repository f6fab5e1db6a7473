"""From a checked body to rows of the engine, and from the rows to tokens: all that a generate route does but HTTP.

Knows tasks, prompts, parameters and deadlines. Knows nothing of how an answer is written.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from batching.types import Compiled, Request
from prefix_store.errors import InvalidTaskId, StoreError
from prefix_store.names import RESERVED_TASK_IDS, check_task_id
from prefix_store.tasks import Served
from prefix_store.usage import Usage
from server.caller import Caller
from server.errors import DeadlinePassed, InvalidValue, NoSuchTask, NotFinite, ServerError
from server.failure_watch import MAX_FAILURES, WITHIN
from server.mailboxes import Letter, Mailbox
from server.parameters import check_combination, sampling_params, with_defaults
from server.rows import Row, Token
from server.schemas import GenerateBody, GenerateParameters
from server.services import Services
from server.text import render


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One request, ready to be queued: `rows` has one engine request per sample of `best_of`."""

    caller: Caller
    served: Served | None
    inputs: str
    parameters: GenerateParameters
    rows: tuple[Request, ...]

    @property
    def task_name(self) -> str:
        """As it is told to whoever reads what was used."""
        return "base" if self.served is None else self.served.task_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.rows[0].prompt_token_ids)

    @property
    def num_prefix_tokens(self) -> int:
        return 0 if self.served is None else self.served.prefix.num_virtual_tokens

    @property
    def seed(self) -> int | None:
        return self.rows[0].sampling_params.seed


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


async def prepare(services: Services, caller: Caller, body: GenerateBody, path_task_id: str | None) -> Generation:
    """Find the task, tokenize the prompt, settle the parameters. All that can be refused is refused here."""
    services.check_open(caller.principal)
    own = body.parameters or GenerateParameters()
    task_id = choose_task(path_task_id, body.task_id, own, services.backbone.name)
    served = None if task_id is None else await serve(services, caller.tenant, task_id)
    parameters = own if served is None else with_defaults(own, served.config.parameters)
    check_combination(parameters, bool(body.stream))
    inputs = body.inputs or ""
    prompt = inputs if served is None else render(served.config.prompt_template, inputs)
    prompt_token_ids = await tokenize(services, prompt)
    if parameters.truncate is not None:
        prompt_token_ids = prompt_token_ids[-parameters.truncate :]
    prompt_token_ids = prompt_token_ids or (services.backbone.eos_token_id,)

    num_virtual_tokens = 0 if served is None else served.prefix.num_virtual_tokens
    num_free_positions = services.engine.max_model_len - num_virtual_tokens - len(prompt_token_ids)
    request = Request(
        request_id=secrets.token_hex(16),  # never the caller's: two callers may choose the same
        tenant=caller.tenant,
        prompt_token_ids=prompt_token_ids,
        prefix=None if served is None else served.prefix,
        sampling_params=sampling_params(parameters, num_free_positions, bool(body.stream)),
        weight=caller.principal.weight,
    )
    services.engine.check(request)
    rows = tuple(sample(request, choice) for choice in range(parameters.best_of or 1))
    num_rows = len(rows) * request.sampling_params.num_beams
    services.engine.check_room(caller.tenant, num_rows, caller.principal.limits.max_queued)
    generation = Generation(caller, served, inputs, parameters, rows)
    services.store.usage.add(caller.tenant, generation.task_name, Usage(requests=1))
    return generation


def choose_task(path: str | None, body: str | None, own: GenerateParameters, backbone_name: str) -> str | None:
    """The one task that is named, in whichever dialect; None is the bare backbone.

    Raises `InvalidValue` where two differ, `NoSuchTask` where the name can be no task's.
    """
    bare = {*RESERVED_TASK_IDS, backbone_name}
    named = {None if name in bare else name for name in (path, body, own.task_id, own.adapter_id) if name}
    if len(named) > 1:
        raise InvalidValue("the path, task_id and adapter_id name different tasks; name one")
    task_id = next(iter(named), None)
    if task_id is not None:
        try:
            check_task_id(task_id)
        except InvalidTaskId as error:
            raise NoSuchTask(str(error)) from None
    return task_id


async def serve(services: Services, tenant: str, task_id: str) -> Served:
    """The task's served version, loaded off the event loop where it is not in memory."""
    cached = services.store.cached(tenant, task_id)
    return cached if cached is not None else await asyncio.to_thread(services.store.get, tenant, task_id)


async def tokenize(services: Services, text: str) -> tuple[int, ...]:
    """Off the event loop. Raises `InvalidValue` on a text over the limit, before any tokenizing."""
    num_bytes, max_bytes = len(text.encode()), services.settings.max_prompt_bytes
    if num_bytes > max_bytes:
        raise InvalidValue(f"inputs: {num_bytes} bytes of text, expected at most {max_bytes}")
    return await asyncio.to_thread(services.tokenizer.encode, text)


def sample(request: Request, choice: int) -> Request:
    """The same request as the `choice`th of several samples."""
    if choice == 0:
        return request
    params = replace(request.sampling_params, choice=choice)
    return replace(request, request_id=f"{request.request_id}-{choice}", sampling_params=params)


async def run(services: Services, generation: Generation) -> list[Row]:
    """Run all rows to their ends, the best (by mean log-probability) first."""
    num_slots = generation.parameters.num_beams or 1
    max_queued = generation.caller.principal.limits.max_queued
    with ExitStack() as stack:
        submitted = [services.engine.submitted(row, num_slots, max_queued) for row in generation.rows]
        mailboxes = [stack.enter_context(each) for each in submitted]
        try:
            async with asyncio.TaskGroup() as group:
                reading = [group.create_task(_read_all(services, generation, mailbox)) for mailbox in mailboxes]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
    rows = [task.result() for task in reading]
    return sorted(rows, key=lambda row: -row.mean_logprob) if len(rows) > 1 else rows


async def run_streaming(services: Services, generation: Generation, row: Row) -> AsyncGenerator[list[Token], None]:
    """Run the one row, filling `row`: the tokens as they come, nothing where a keep-alive is due."""
    max_queued = generation.caller.principal.limits.max_queued
    with services.engine.submitted(generation.rows[0], max_queued=max_queued) as mailbox:
        patience = Patience(services, mailbox)
        try:
            while row.finish_reason is None:
                tokens: list[Token] = []
                try:
                    for letter in await patience.take():
                        tokens += _read(services, generation, row, letter)
                except ServerError as error:
                    if tokens:
                        yield tokens  # what came before the failure is not lost with it
                    if isinstance(error, NotFinite):
                        await _note_failure(services, generation)
                    raise
                yield tokens
        finally:
            _account(services, generation, row)


def new_row(services: Services, generation: Generation) -> Row:
    parameters = generation.parameters
    return Row(services.tokenizer, parameters.stop or (), has_beams=(parameters.num_beams or 1) > 1)


async def _read_all(services: Services, generation: Generation, mailbox: Mailbox) -> Row:
    row = new_row(services, generation)
    patience = Patience(services, mailbox)
    try:
        while row.finish_reason is None:
            for letter in await patience.take():
                _read(services, generation, row, letter)
    except NotFinite:
        await _note_failure(services, generation)
        raise
    finally:
        _account(services, generation, row)
    return row


def _read(services: Services, generation: Generation, row: Row, letter: Letter) -> list[Token]:
    assert not isinstance(letter, Compiled), "an answer to Compile in a request's mailbox"
    if row.finish_reason is not None:
        return []
    was_queued, was_silent = row.admitted_at is None, not row.tokens
    tokens = row.read(letter)
    arrived_at = generation.caller.arrived_at
    if was_queued:
        services.metrics.queue_seconds.observe(max(0.0, letter.admitted_at - arrived_at))
    if was_silent and tokens:
        services.metrics.first_token_seconds.observe(time.monotonic() - arrived_at)
    return tokens


def _account(services: Services, generation: Generation, row: Row) -> None:
    """Put a row's tokens on its tenant's account, however it ended; one that never ran costs nothing."""
    if row.admitted_at is None:
        return
    num_prompt_tokens, num_generated_tokens = generation.num_prompt_tokens, len(row.tokens)
    services.metrics.prompt_tokens.inc(num_prompt_tokens)
    services.metrics.generated_tokens.inc(num_generated_tokens)
    services.limits.charge(generation.caller.principal, num_prompt_tokens, num_generated_tokens)
    used = Usage(
        prompt_tokens=num_prompt_tokens,
        generated_tokens=num_generated_tokens,
        seconds=time.monotonic() - row.admitted_at,
    )
    services.store.usage.add(generation.caller.tenant, generation.task_name, used)


async def _note_failure(services: Services, generation: Generation) -> None:
    """Its version has failed a row: the third time within ten minutes it is served no more."""
    served = generation.served
    if served is not None and services.failures.note(served):
        reason = f"{MAX_FAILURES} of its rows failed within {WITHIN / 60:g} minutes"
        services.log.error("quarantined", tenant=served.tenant, task_id=served.task_id, version=served.version)
        try:
            await services.write(services.store.quarantine, served.tenant, served.task_id, served.version, reason)
        except StoreError as error:  # it was deleted meanwhile, or the disk is full: the row has failed all the same
            services.log.warning("not_quarantined", reason=str(error))
