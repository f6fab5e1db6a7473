"""What can never be served, whoever else is there: known before a request is queued.

Knows the backbone's numbers and the engine's capacity. Knows nothing of what runs now.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from batching.sequence import Sequence
from batching.types import MAX_MIXED_PREFIXES, Compile, ContextTooLong, Request, RequestError, SamplingParams
from prefix_store.prefix import BackboneShape

MAX_WEIGHT = 1e6  # of a tenant: the sum of all, times the slots, stays a finite number


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine can serve: its backbone's numbers, its slots, and the tokens of one row.

    One request may have all but twice `num_reserved_slots` of them: see `FairShare`.
    """

    shape: BackboneShape
    vocab_size: int
    max_num_seqs: int
    max_model_len: int
    num_reserved_slots: int = 0


def check_request(request: Request | Compile, capacity: Capacity) -> None:
    """Raise `RequestError` with what was wrong and what was expected."""
    if not 0 < request.weight <= MAX_WEIGHT:  # nor NaN
        raise RequestError(f"weight is {request.weight}; expected a number above 0, up to {MAX_WEIGHT:g}")
    sequence = Sequence(request)
    prefixes = [prefix for prefix in sequence.prefixes if prefix is not None]
    for prefix in prefixes:
        _check_prefix_shape(prefix.past_key_values, capacity.shape)
    if isinstance(request, Compile):
        _check_compile(request, capacity.shape)
    elif request.mix:
        _check_mix(request)
    if isinstance(request, Request) and request.constraint is not None:
        _check_constrained(request.sampling_params)
    if sequence.num_prompt_tokens == 0:
        raise RequestError("the prompt has no tokens; feed the end-of-text token in its place")
    num_slots = capacity.max_num_seqs - 2 * capacity.num_reserved_slots
    if sequence.num_slots_needed > num_slots:
        what = "num_beams" if len(sequence.prefixes) == 1 else "the number of mixed tasks"
        raise RequestError(f"{what} is {sequence.num_slots_needed}; the server has {num_slots} slots for one request")
    max_new_tokens = request.sampling_params.max_new_tokens if isinstance(request, Request) else 0
    num_virtual_tokens = max((prefix.num_virtual_tokens for prefix in prefixes), default=0)
    num_tokens = num_virtual_tokens + sequence.num_prompt_tokens + max_new_tokens
    if num_tokens > capacity.max_model_len:
        raise ContextTooLong(num_tokens, capacity.max_model_len)
    token_ids = request.prompt_token_ids if isinstance(request, Request) else request.token_ids or ()
    if not all(0 <= token_id < capacity.vocab_size for token_id in token_ids):
        raise RequestError(f"a token id is outside the vocabulary of {capacity.vocab_size}")


def _check_mix(request: Request) -> None:
    if request.prefix is not None:
        raise RequestError("a request has a prefix or a mix; expected one of them")
    if not 2 <= len(request.mix) <= MAX_MIXED_PREFIXES:
        raise RequestError(f"the mix has {len(request.mix)} parts; expected 2 to {MAX_MIXED_PREFIXES}")
    for mixed in request.mix:
        if not (math.isfinite(mixed.weight) and mixed.weight > 0):
            raise RequestError(f"a weight in the mix is {mixed.weight}; expected a finite number above 0")
    if not math.isfinite(sum(mixed.weight for mixed in request.mix)):
        raise RequestError("the weights of the mix have no finite sum")
    if request.sampling_params.num_beams > 1:
        raise RequestError(f"num_beams is {request.sampling_params.num_beams}; expected 1 with a mix of tasks")


def _check_constrained(params: SamplingParams) -> None:
    if params.num_beams > 1:
        raise RequestError(f"num_beams is {params.num_beams}; expected 1 with a grammar, which beams cannot follow")
    if params.min_new_tokens > 0:
        raise RequestError(
            f"min_new_tokens is {params.min_new_tokens}; expected 0 with a grammar, which decides when a text may end"
        )


def _check_compile(request: Compile, shape: BackboneShape) -> None:
    if (request.token_ids is None) == (request.embeddings is None):
        raise RequestError("a Compile has token_ids or embeddings; expected exactly one of them")
    if request.embeddings is not None and request.embeddings.shape[1:] != (shape.n_embd,):
        raise RequestError(f"embeddings are {list(request.embeddings.shape)}; expected [T, {shape.n_embd}]")


def _check_prefix_shape(past_key_values: Tensor, shape: BackboneShape) -> None:
    n_layer, two, _, n_head, head_dim = past_key_values.shape
    if (n_layer, two, n_head, head_dim) != (shape.n_layer, 2, shape.n_head, shape.head_dim):
        expected = f"[{shape.n_layer}, 2, T, {shape.n_head}, {shape.head_dim}]"
        raise RequestError(f"the prefix is {list(past_key_values.shape)}; the backbone expects {expected}")
