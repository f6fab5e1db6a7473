"""OpenAI's requests as generations: their names for our parameters, and OpenAI's defaults where nobody says otherwise.

A request's own value wins, then its task's default, then OpenAI's. Knows nothing of how an answer is written.
"""

from collections.abc import Mapping
from typing import Any

from server.asked import Asked, find_asked
from server.caller import Caller
from server.errors import InvalidValue
from server.generation import Generation, Prompt, find_constraint, plan, read_prompt, tokenize
from server.openai.chat import render_chat
from server.openai.schemas import ChatBody, CompletionBody, SampledBody
from server.parameters import SAMPLING, check_combination, with_defaults
from server.schemas import GenerateParameters
from server.services import Services

COMPLETION_DEFAULTS = {"max_new_tokens": 16}
TEMPERATURE = 1.0


async def prepare_completion(services: Services, caller: Caller, body: CompletionBody) -> list[Generation]:
    """One generation for each prompt. All that can be refused is refused here."""
    asked = await find_asked(services, caller, body.model)
    own = _own_parameters(
        body,
        max_new_tokens=body.max_tokens,
        best_of=body.best_of or body.n,
        details=body.logprobs is not None,
        top_n_tokens=body.logprobs,
        decoder_input_details=body.echo,
    )
    parameters = _settled(body, own, asked, COMPLETION_DEFAULTS)
    prompts = [
        await read_prompt(services, asked, prompt) if isinstance(prompt, str) else Prompt("", tuple(prompt))
        for prompt in body.prompts
    ]
    constraint = await find_constraint(services, caller, parameters)
    return plan(services, caller, asked, parameters, prompts, has_scores=False, constraint=constraint)


async def prepare_chat(services: Services, caller: Caller, body: ChatBody) -> list[Generation]:
    """A conversation is one prompt. Raises `InvalidValue` where the task has no chat template."""
    asked = await find_asked(services, caller, body.model)
    chat_template = None if asked.served is None else asked.served.config.chat_template
    if chat_template is None:
        raise InvalidValue("this task's config has no chat_template; set one by PATCH, or use completions", "model")
    own = _own_parameters(
        body,
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        best_of=body.n,
        details=body.logprobs,
        top_n_tokens=body.top_logprobs,
    )
    parameters = _settled(body, own, asked, {})
    text = render_chat(chat_template, body.messages)
    prompt = Prompt(text, await tokenize(services, text))
    constraint = await find_constraint(services, caller, parameters)
    return plan(services, caller, asked, parameters, [prompt], has_scores=False, constraint=constraint)


def _own_parameters(body: SampledBody, **translated: Any) -> GenerateParameters:
    """What the request itself says; its values were checked with its body."""
    same = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": body.stop_strings,
        "response_format": body.response_format,
    }
    return GenerateParameters().model_copy(update={**same, **translated})


def _settled(
    body: SampledBody, own: GenerateParameters, asked: Asked, defaults: Mapping[str, object]
) -> GenerateParameters:
    """With the task's defaults and then OpenAI's: it samples, unless the request or the task chooses another way."""
    ways = {"stream": bool(body.stream), "is_mix": asked.is_mix}
    parameters = with_defaults(own, {**defaults, **asked.defaults}, **ways)
    # Where its beams cannot be had, in a stream say, a task that searches is greedy.
    searches = own.num_samples == 1 and with_defaults(GenerateParameters(), asked.defaults).num_slots > 1
    chosen = searches or any(getattr(parameters, name) is not None for name in SAMPLING)
    if not chosen:
        parameters = with_defaults(parameters, {"temperature": TEMPERATURE})
    check_combination(parameters, bool(body.stream))
    if body.stream and parameters.num_samples > body.num_choices:
        raise InvalidValue("best_of > n cannot be streamed", "best_of")
    return parameters
