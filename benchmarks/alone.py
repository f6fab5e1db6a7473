"""A request by itself, as transformers answers it: the prefix as the cache, the prompt after it, no other row.

Knows transformers' `generate`. Knows nothing of what it is compared with. The input ids are padded in front by as many
dummies as the prefix has virtual tokens, because generation cuts off what the cache already holds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel


def cache_of(model: GPT2LMHeadModel, past_key_values: Tensor) -> DynamicCache:
    """A prefix `[n_layer, 2, num_virtual_tokens, n_head, head_dim]` as the cache of one row."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(past_key_values.to(model.device, model.dtype).transpose(2, 3)):
        cache.update(keys[None], values[None], layer)
    return cache


@torch.inference_mode()
def generate_alone(
    model: GPT2LMHeadModel, past_key_values: Tensor, prompt: Sequence[int], max_new_tokens: int, min_new_tokens: int = 0
) -> list[int]:
    """The new tokens, greedy; `<|endoftext|>` is the last one where it came in time."""
    padded = [prompt[0]] * past_key_values.shape[2] + list(prompt)
    input_ids = torch.tensor([padded], device=model.device)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        past_key_values=cache_of(model, past_key_values),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        pad_token_id=model.config.eos_token_id,
    )
    new_token_ids: list[int] = output[0, len(padded) :].tolist()
    return new_token_ids


@torch.inference_mode()
def next_logits(model: GPT2LMHeadModel, past_key_values: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Of the token after a text, `[vocab_size]`."""
    ids = torch.tensor([list(token_ids)], device=model.device)
    logits: Tensor = model(ids, past_key_values=cache_of(model, past_key_values)).logits[0, -1]
    return logits
