"""A request's parameters: its task's defaults, which go together, and what they mean to the engine.

Knows the contract's rules. Knows nothing of tasks, prompts or tokens.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from batching.types import SamplingParams
from server.errors import InvalidValue
from server.grammar_compiler import Grammar
from server.schemas import (
    MAX_GRAMMAR_BYTES,
    GenerateParameters,
    JsonGrammar,
    JsonObjectFormat,
    JsonSchemaFormat,
    JsonSchemaGrammar,
    RegexGrammar,
    TextFormat,
)

DEFAULT_MAX_NEW_TOKENS = 64
SEED_BITS = 53  # so that a reader that holds numbers in doubles gets the seed exactly


ANY_OBJECT = {"type": "object"}
SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}
BEAMS = {"num_beams", "length_penalty", "early_stopping"}


def with_defaults(
    own: GenerateParameters, defaults: Mapping[str, object], *, stream: bool = False, is_mix: bool = False
) -> GenerateParameters:
    """Fill in a task's defaults where the request says nothing, but for those that go against what it says: how it is
    to be searched (greedy, by `do_sample: false` or temperature 0; beams; that it samples), a grammar, a stream, which
    tells tokens before a better answer could be chosen, a mix, or how long the answer may be.
    """
    refused: set[str] = set()
    if stream:
        refused |= BEAMS | {"best_of"}
    if is_mix:
        refused |= BEAMS if is_sampling(own.model_copy(update=dict(defaults))) else BEAMS | {"best_of"}
    if own.grammar is not None or not isinstance(own.response_format, TextFormat | None):
        refused |= BEAMS | {"min_new_tokens"}
    is_greedy = not is_sampling(own) and (own.do_sample is False or own.temperature == 0)
    if is_greedy or own.num_slots > 1:
        refused |= SAMPLING | {"best_of"}
    elif is_sampling(own) or own.num_samples > 1:
        greedy = {"temperature": 0, "do_sample": False}
        refused |= BEAMS | {name for name, value in greedy.items() if defaults.get(name) == value}
    unset = {name: value for name, value in defaults.items() if getattr(own, name) is None and name not in refused}
    settled = own.model_copy(update=unset)
    if own.min_new_tokens is None and settled.min_new_tokens is not None and settled.max_new_tokens is not None:
        return settled.model_copy(update={"min_new_tokens": min(settled.min_new_tokens, settled.max_new_tokens)})
    return settled


def is_sampling(parameters: GenerateParameters) -> bool:
    """text-generation-inference's rule, and temperature 0 is greedy."""
    chosen = (parameters.temperature, parameters.top_k, parameters.top_p)
    return parameters.temperature != 0 and (bool(parameters.do_sample) or any(value is not None for value in chosen))


def check_combination(parameters: GenerateParameters, stream: bool) -> None:
    """Raise `InvalidValue` for what contradicts itself, in any dialect."""
    has_beams, has_samples = parameters.num_slots > 1, parameters.num_samples > 1
    refused = {
        "num_beams > 1 is for greedy search only; leave out do_sample, temperature, top_k and top_p": has_beams
        and is_sampling(parameters),
        "num_beams > 1 cannot be streamed": has_beams and stream,
        "num_beams > 1 does not go together with best_of > 1 or n > 1": has_beams and has_samples,
        "best_of > 1 and n > 1 need sampling; set do_sample or temperature": has_samples
        and not is_sampling(parameters),
    }
    _refuse(refused)


def check_event_stream(parameters: GenerateParameters) -> None:
    """Raise `InvalidValue` for what the events of our own dialect have no place for."""
    _refuse(
        {
            "best_of > 1 cannot be streamed": parameters.num_samples > 1,
            "decoder_input_details cannot be streamed": bool(parameters.decoder_input_details),
        }
    )


def sampling_params(parameters: GenerateParameters, num_free_positions: int, has_scores: bool) -> SamplingParams:
    """Fill in what is null. Where the context leaves no position, one is asked for, and the engine refuses it.

    `has_scores`: the tokens' log-probabilities are wanted, whether details are or not. A choice of samples needs them.
    """
    samples = is_sampling(parameters)
    details = bool(parameters.details)
    scores = has_scores or details or parameters.num_samples > 1
    given: dict[str, Any] = {
        "max_new_tokens": parameters.max_new_tokens or max(1, min(DEFAULT_MAX_NEW_TOKENS, num_free_positions)),
        "min_new_tokens": parameters.min_new_tokens,
        "temperature": (1.0 if parameters.temperature is None else parameters.temperature) if samples else None,
        "top_k": parameters.top_k if samples else None,
        "top_p": parameters.top_p if samples else None,
        "repetition_penalty": parameters.repetition_penalty,
        "seed": secrets.randbits(SEED_BITS) if samples and parameters.seed is None else parameters.seed,
        "logprobs": (parameters.top_n_tokens or 0) if scores else None,
        "prompt_logprobs": details and parameters.decoder_input_details,
        "num_beams": parameters.num_beams,
        "length_penalty": parameters.length_penalty,
        "early_stopping": parameters.early_stopping,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def grammar_of(parameters: GenerateParameters) -> tuple[str, Grammar | None]:
    """The grammar that is asked for, in whichever dialect, and the parameter that says it. Raises `InvalidValue`."""
    name = "grammar" if parameters.response_format is None else "response_format"
    given = parameters.grammar or parameters.response_format
    if given is None or isinstance(given, TextFormat):
        return name, None
    if isinstance(given, RegexGrammar):
        grammar = Grammar("regex", given.value)
    else:
        try:
            grammar = Grammar("json", json.dumps(_schema_of(given), ensure_ascii=False))
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"{name}: not the JSON of a schema: {error}", name) from None
    try:
        num_bytes = len(grammar.source.encode())
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{name}: not a text: {error.reason}", name) from None
    if num_bytes > MAX_GRAMMAR_BYTES:
        raise InvalidValue(f"{name}: {num_bytes} bytes, expected at most {MAX_GRAMMAR_BYTES}", name)
    return name, grammar


def _schema_of(given: JsonGrammar | JsonSchemaGrammar | JsonObjectFormat | JsonSchemaFormat) -> object:
    """Raises `ValueError` on a string that is no JSON."""
    if isinstance(given, JsonGrammar):
        return json.loads(given.value) if isinstance(given.value, str) else given.value
    if isinstance(given, JsonObjectFormat):
        schema = given.value if given.json_schema is None else given.json_schema
        return ANY_OBJECT if schema is None else schema
    named = given.value if isinstance(given, JsonSchemaGrammar) else given.json_schema
    return ANY_OBJECT if named.json_schema is None else named.json_schema


def _refuse(refused: Mapping[str, bool]) -> None:
    for message, holds in refused.items():
        if holds:
            raise InvalidValue(message)
