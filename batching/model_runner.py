"""Runs one step's rows through the backbone.

Knows rows, token ids and logits. Knows nothing of requests that wait, of sampling or of finish rules.
"""

import torch
from torch import Tensor

from batching.attention import NewTokens, plan_attention
from batching.gpt2 import Backbone
from batching.kv_cache import KVCache
from batching.sequence import RowStep
from batching.types import Compile


class ModelRunner:
    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self._backbone = backbone
        self._cache = cache

    def execute(self, steps: list[RowStep]) -> Tensor:
        """One forward pass. Returns logits `[M, vocab_size]` in float32, `num_logits` of each row, in the rows' order.

        Running the same rows again is harmless: the same entries are written at the same places.
        """
        device = self._backbone.device
        new_tokens = [NewTokens(step.row.slot, step.row.num_cached, step.num_new_tokens) for step in steps]
        plan = plan_attention(new_tokens, self._backbone.dtype, device)
        hidden_states = self._backbone.forward(self._embed(steps), plan, self._cache)  # [N, C]
        wanted: list[int] = []
        end = 0
        for step in steps:
            end += step.num_new_tokens
            wanted.extend(range(end - num_logits(step), end))
        if len(wanted) < end:
            hidden_states = hidden_states[torch.tensor(wanted, dtype=torch.int64, device=device)]  # [M, C]
        return self._backbone.logits(hidden_states)

    def _embed(self, steps: list[RowStep]) -> Tensor:
        """`[N, C]`: token embeddings, but a compiled prompt's own where it brings them."""
        token_ids: list[int] = []
        own: list[tuple[int, Tensor]] = []
        for step in steps:
            embeddings = step.sequence.request.embeddings if isinstance(step.sequence.request, Compile) else None
            if embeddings is None:
                token_ids.extend(step.sequence.pending_token_ids(step.row, step.num_new_tokens))
            else:
                start = step.row.num_cached
                own.append((len(token_ids), embeddings[start : start + step.num_new_tokens]))
                token_ids.extend([0] * step.num_new_tokens)
        x = self._backbone.embed(torch.tensor(token_ids, device=self._backbone.device))
        for start, embeddings in own:
            x[start : start + len(embeddings)] = embeddings
        return x


def num_logits(step: RowStep) -> int:
    """How many of a row's new tokens give logits: the last one if the row is complete then, all if the prompt's
    log-probabilities are wanted, else none.
    """
    request = step.sequence.request
    if isinstance(request, Compile):
        return 0
    if request.sampling_params.prompt_logprobs and not step.row.output_token_ids:
        return step.num_new_tokens
    return 1 if step.completes_row else 0
