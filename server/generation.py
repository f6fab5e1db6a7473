"""From a checked body to rows of the engine: the task, the prompt's tokens, the settled parameters.

Knows tasks, prompts and parameters. Knows nothing of how rows run or of how an answer is written.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from batching.types import Constraint, Request
from prefix_store.errors import InvalidTaskId
from prefix_store.names import RESERVED_TASK_IDS, check_task_id
from prefix_store.tasks import Served
from prefix_store.usage import Usage
from server.caller import Caller
from server.errors import InvalidValue, NoSuchTask
from server.grammar_compiler import GrammarError
from server.parameters import check_combination, check_event_stream, grammar_of, sampling_params, with_defaults
from server.schemas import MAX_REQUEST_ROWS, GenerateBody, GenerateParameters
from server.services import Services
from server.text import render


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: the text as it was sent, `""` where token ids were, and its tokens."""

    inputs: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One prompt, ready to be queued: `rows` has one engine request per sample of it."""

    caller: Caller
    served: Served | None
    inputs: str
    parameters: GenerateParameters
    rows: tuple[Request, ...]

    @property
    def task_name(self) -> str:
        return task_name(self.served)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.rows[0].prompt_token_ids)

    @property
    def num_prefix_tokens(self) -> int:
        return 0 if self.served is None else self.served.prefix.num_virtual_tokens

    @property
    def seed(self) -> int | None:
        return self.rows[0].sampling_params.seed


async def prepare(services: Services, caller: Caller, body: GenerateBody, path_task_id: str | None) -> Generation:
    """Find the task, tokenize the prompt, settle the parameters. All that can be refused is refused here."""
    own, stream = body.parameters or GenerateParameters(), bool(body.stream)
    served = await find_task(services, caller, path_task_id, body.task_id, own.task_id, own.adapter_id)
    parameters = own if served is None else with_defaults(own, served.config.parameters)
    check_combination(parameters, stream)
    if stream:
        check_event_stream(parameters)
    prompt = await read_prompt(services, served, body.inputs or "")
    constraint = await find_constraint(services, caller, parameters)
    (generation,) = plan(services, caller, served, parameters, [prompt], has_scores=stream, constraint=constraint)
    return generation


def plan(
    services: Services,
    caller: Caller,
    served: Served | None,
    parameters: GenerateParameters,
    prompts: Sequence[Prompt],
    *,
    has_scores: bool,
    constraint: Constraint | None = None,
) -> list[Generation]:
    """One generation for each prompt of a request, which is counted. `has_scores` as in `sampling_params`.

    Raises where one of them can never be served, and where there is no room for all of them.
    """
    num_rows = len(prompts) * parameters.num_samples
    if num_rows > MAX_REQUEST_ROWS:
        raise InvalidValue(
            f"the request makes {num_rows} rows (prompts x samples); expected at most {MAX_REQUEST_ROWS}"
        )
    generations = [
        _generation(services, caller, served, parameters, prompt, has_scores, constraint) for prompt in prompts
    ]
    services.engine.check_room(caller.tenant, num_rows * parameters.num_slots, caller.principal.limits.max_queued)
    services.store.usage.add(caller.tenant, task_name(served), Usage(requests=1))
    return generations


def _generation(
    services: Services,
    caller: Caller,
    served: Served | None,
    parameters: GenerateParameters,
    prompt: Prompt,
    has_scores: bool,
    constraint: Constraint | None,
) -> Generation:
    token_ids = prompt.token_ids if parameters.truncate is None else prompt.token_ids[-parameters.truncate :]
    token_ids = token_ids or (services.backbone.eos_token_id,)
    num_virtual_tokens = 0 if served is None else served.prefix.num_virtual_tokens
    num_free_positions = services.engine.max_model_len - num_virtual_tokens - len(token_ids)
    request = Request(
        request_id=secrets.token_hex(16),  # never the caller's: two callers may choose the same
        tenant=caller.tenant,
        prompt_token_ids=token_ids,
        prefix=None if served is None else served.prefix,
        sampling_params=sampling_params(parameters, num_free_positions, has_scores),
        weight=caller.principal.weight,
        constraint=constraint,
    )
    services.engine.check(request)
    rows = tuple(_sample(request, choice) for choice in range(parameters.num_samples))
    return Generation(caller, served, prompt.inputs, parameters, rows)


async def find_task(services: Services, caller: Caller, *names: str | None) -> Served | None:
    """The served version of the one task that is named, in whichever dialect; None for the bare backbone."""
    task_id = choose_task(names, services.backbone.name)
    return None if task_id is None else await serve(services, caller.tenant, task_id)


def choose_task(names: Sequence[str | None], backbone_name: str) -> str | None:
    """The one task that is named; None is the bare backbone.

    Raises `InvalidValue` where two differ, `NoSuchTask` where the name can be no task's.
    """
    bare = {*RESERVED_TASK_IDS, backbone_name}
    named = {None if name in bare else name for name in names if name}
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


async def read_prompt(services: Services, served: Served | None, inputs: str) -> Prompt:
    """A text as its task's template puts it."""
    text = inputs if served is None else render(served.config.prompt_template, inputs)
    return Prompt(inputs, await tokenize(services, text))


async def tokenize(services: Services, text: str) -> tuple[int, ...]:
    """Off the event loop. Raises `InvalidValue` on a text over the limit, before any tokenizing."""
    num_bytes, max_bytes = len(text.encode()), services.settings.max_prompt_bytes
    if num_bytes > max_bytes:
        raise InvalidValue(f"inputs: {num_bytes} bytes of text, expected at most {max_bytes}")
    return await asyncio.to_thread(services.tokenizer.encode, text)


async def find_constraint(services: Services, caller: Caller, parameters: GenerateParameters) -> Constraint | None:
    """What the request's grammar is compiled to, for each of its rows; None where it has no grammar.

    Raises `InvalidValue`, `DeadlinePassed`.
    """
    name, grammar = grammar_of(parameters)
    if grammar is None:
        return None
    try:
        return await services.grammars.compile(caller.tenant, grammar)
    except GrammarError as error:
        raise InvalidValue(f"{name}: {error}", name) from None


def _sample(request: Request, choice: int) -> Request:
    """The same request as the `choice`th of several samples."""
    if choice == 0:
        return request
    params = replace(request.sampling_params, choice=choice)
    return replace(request, request_id=f"{request.request_id}-{choice}", sampling_params=params)


def task_name(served: Served | None) -> str:
    """As it is told to whoever reads what was used."""
    return "base" if served is None else served.task_id
