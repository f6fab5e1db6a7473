"""What can never be served, whoever else is there: known before a request is queued.

Knows the backbone's numbers and the engine's limits. Knows nothing of what runs now.
"""

import math

from torch import Tensor

from batching.gpt2 import Backbone
from batching.sequence import Sequence
from batching.types import Compile, ContextTooLong, Request, RequestError, SamplingParams
from prefix_store.prefix import BackboneShape


def check_request(request: Request | Compile, backbone: Backbone, max_num_seqs: int, max_model_len: int) -> None:
    """Raise `RequestError` with what was wrong and what was expected."""
    if not (math.isfinite(request.weight) and request.weight > 0):
        raise RequestError(f"weight is {request.weight}; expected a finite number above 0")
    if isinstance(request, Compile):
        _check_compile(request, backbone.shape)
    elif request.prefix is not None:
        _check_prefix_shape(request.prefix.past_key_values, backbone.shape)
    if isinstance(request, Request) and request.constraint is not None:
        _check_constrained(request.sampling_params)
    sequence = Sequence(request)
    if sequence.num_prompt_tokens == 0:
        raise RequestError("the prompt has no tokens; feed the end-of-text token in its place")
    if sequence.num_slots_needed > max_num_seqs:
        raise RequestError(f"num_beams is {sequence.num_slots_needed}; the server has {max_num_seqs} slots")
    max_new_tokens = request.sampling_params.max_new_tokens if isinstance(request, Request) else 0
    num_tokens = sequence.num_virtual_tokens + sequence.num_prompt_tokens + max_new_tokens
    if num_tokens > max_model_len:
        raise ContextTooLong(num_tokens, max_model_len)
    token_ids = request.prompt_token_ids if isinstance(request, Request) else request.token_ids or ()
    if not all(0 <= token_id < backbone.vocab_size for token_id in token_ids):
        raise RequestError(f"a token id is outside the vocabulary of {backbone.vocab_size}")


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
