"""From a checked body to rows of the engine: the task, the prompt's tokens, the settled parameters.

Knows prompts and parameters, and whom a request asks. Knows nothing of how rows run or of how an answer is written.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batching.types import MixedPrefix, Request
from prefix_store.usage import Usage
from server.asked import Asked, find_asked
from server.caller import Caller
from server.errors import InvalidValue
from server.grammar_compiler import GrammarError
from server.kept_grammars import OwnGrammar
from server.parameters import check_combination, check_event_stream, grammar_of, sampling_params, with_defaults
from server.schemas import MAX_REQUEST_ROWS, GenerateBody, GenerateParameters
from server.services import Services
from server.text import render

MAX_SHORT_BYTES = 1 << 10  # of a text whose tokens are found in a fraction of a millisecond


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: the text as it was sent, `""` where token ids were, and its tokens."""

    inputs: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One prompt, ready to be queued: `rows` has one engine request per sample of it."""

    caller: Caller
    asked: Asked
    inputs: str
    parameters: GenerateParameters
    rows: tuple[Request, ...]

    @property
    def num_slots(self) -> int:
        """That each sample takes."""
        return max(self.parameters.num_slots, len(self.asked.parts))

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.rows[0].prompt_token_ids)

    @property
    def seed(self) -> int | None:
        return self.rows[0].sampling_params.seed


async def prepare(services: Services, caller: Caller, body: GenerateBody, path_task_id: str | None) -> Generation:
    """Find the task, tokenize the prompt, settle the parameters. All that can be refused is refused here."""
    own, stream = body.parameters or GenerateParameters(), bool(body.stream)
    asked = await find_asked(services, caller, path_task_id, body.task_id, own.task_id, own.adapter_id)
    parameters = with_defaults(own, asked.defaults, stream=stream, is_mix=asked.is_mix)
    check_combination(parameters, stream)
    if stream:
        check_event_stream(parameters)
    prompt = await read_prompt(services, asked, body.inputs or "")
    constraint = await find_constraint(services, caller, parameters)
    (generation,) = plan(services, caller, asked, parameters, [prompt], has_scores=stream, constraint=constraint)
    return generation


def plan(
    services: Services,
    caller: Caller,
    asked: Asked,
    parameters: GenerateParameters,
    prompts: Sequence[Prompt],
    *,
    has_scores: bool,
    constraint: OwnGrammar | None = None,
) -> list[Generation]:
    """One generation for each prompt of a request. `has_scores` as in `sampling_params`.

    Then the request is counted, and its room kept. Raises where one of them can never be served, and where there is no
    room for all of them.
    """
    num_rows = len(prompts) * parameters.num_samples * len(asked.parts)
    if num_rows > MAX_REQUEST_ROWS:
        raise InvalidValue(
            f"the request makes {num_rows} rows (prompts x samples x tasks mixed); expected at most {MAX_REQUEST_ROWS}"
        )
    generations = [
        _generation(services, caller, asked, parameters, prompt, has_scores, constraint) for prompt in prompts
    ]
    num_slots = sum(len(generation.rows) * generation.num_slots for generation in generations)
    max_queued = caller.principal.limits.max_queued
    services.engine.check_room(caller.tenant, num_slots, max_queued, caller.place.num_rows)
    caller.place.keep(num_slots)
    for part in asked.parts:
        services.store.usage.add(caller.tenant, part.name, Usage(requests=1))
    return generations


def _generation(
    services: Services,
    caller: Caller,
    asked: Asked,
    parameters: GenerateParameters,
    prompt: Prompt,
    has_scores: bool,
    constraint: OwnGrammar | None,
) -> Generation:
    token_ids = prompt.token_ids if parameters.truncate is None else prompt.token_ids[-parameters.truncate :]
    token_ids = token_ids or (services.backbone.eos_token_id,)
    num_free_positions = services.engine.max_model_len - asked.num_prefix_tokens - len(token_ids)
    request = Request(
        request_id=secrets.token_hex(16),  # never the caller's: two callers may choose the same
        tenant=caller.tenant,
        prompt_token_ids=token_ids,
        prefix=None if asked.is_mix else asked.parts[0].prefix,
        sampling_params=sampling_params(parameters, num_free_positions, has_scores),
        weight=caller.principal.weight,
        constraint=constraint,
        mix=tuple(MixedPrefix(part.prefix, part.weight) for part in asked.parts) if asked.is_mix else (),
    )
    services.engine.check(request)
    rows = tuple(_sample(request, choice) for choice in range(parameters.num_samples))
    return Generation(caller, asked, prompt.inputs, parameters, rows)


async def read_prompt(services: Services, asked: Asked, inputs: str) -> Prompt:
    """A text as its task's template puts it."""
    return Prompt(inputs, await tokenize(services, render(asked.prompt_template, inputs)))


async def tokenize(services: Services, text: str) -> tuple[int, ...]:
    """Off the event loop, where it is more than a thread costs. Raises `InvalidValue` on a text over the limit, before
    any tokenizing."""
    num_bytes, max_bytes = len(text.encode()), services.settings.max_prompt_bytes
    if num_bytes > max_bytes:
        raise InvalidValue(f"inputs: {num_bytes} bytes of text, expected at most {max_bytes}")
    if num_bytes <= MAX_SHORT_BYTES:
        token_ids = services.tokenizer.encode(text)
        await asyncio.sleep(0)  # a request may have many texts, and others want their turn
        return token_ids
    return await asyncio.to_thread(services.tokenizer.encode, text)


async def find_constraint(services: Services, caller: Caller, parameters: GenerateParameters) -> OwnGrammar | None:
    """What each of the request's rows has to follow; None where it has no grammar.

    Who waits for its grammar waits in the queue. Raises `InvalidValue`, `DeadlinePassed`, and as `Room.check`.
    """
    name, grammar = grammar_of(parameters)
    if grammar is None:
        return None
    own, place = OwnGrammar(caller.tenant, grammar), caller.place
    services.engine.check_room(caller.tenant, 1, caller.principal.limits.max_queued, place.num_rows)
    place.keep(max(1, place.num_rows))  # what is kept for the body alone lapses soon
    try:
        await services.grammars.check(own)
    except GrammarError as error:
        raise InvalidValue(f"{name}: {error}", name) from None
    return own


def _sample(request: Request, choice: int) -> Request:
    """The same request as the `choice`th of several samples."""
    if choice == 0:
        return request
    params = replace(request.sampling_params, choice=choice)
    return replace(request, request_id=f"{request.request_id}-{choice}", sampling_params=params)
