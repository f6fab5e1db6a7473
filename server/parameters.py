"""A request's parameters: its task's defaults, which go together, and what they mean to the engine.

Knows the contract's rules. Knows nothing of tasks, prompts or tokens.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from batching.types import SamplingParams
from server.errors import InvalidValue
from server.schemas import GenerateParameters

DEFAULT_MAX_NEW_TOKENS = 64
SEED_BITS = 53  # so that a reader that holds numbers in doubles gets the seed exactly


SAMPLING = ("do_sample", "temperature", "top_k", "top_p")


def with_defaults(own: GenerateParameters, defaults: Mapping[str, object]) -> GenerateParameters:
    """Fill in a task's defaults where the request says nothing; `do_sample: false` refuses all of sampling's."""
    refused = SAMPLING if own.do_sample is False else ()
    unset = {name: value for name, value in defaults.items() if getattr(own, name) is None and name not in refused}
    return own.model_copy(update=unset)


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


def _refuse(refused: Mapping[str, bool]) -> None:
    for message, holds in refused.items():
        if holds:
            raise InvalidValue(message)
