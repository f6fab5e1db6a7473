"""What is right, by transformers: `GPT2LMHeadModel` given a `DynamicCache` that holds the prefix.

The input ids are padded in front by `num_virtual_tokens` dummies and the mask is all ones, so that generation cuts what
the cache already holds. The dummy is the prompt's first token: another one would be punished by the repetition penalty.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel

from batching.types import Request, SamplingParams


def prefix_cache(prefix: Tensor | None, num_rows: int) -> DynamicCache:
    """`[n_layer, 2, T, n_head, head_dim]` -> a cache of `num_rows` equal rows."""
    cache = DynamicCache()
    if prefix is not None:
        for layer, (keys, values) in enumerate(prefix.transpose(2, 3)):
            cache.update(keys.expand(num_rows, -1, -1, -1).clone(), values.expand(num_rows, -1, -1, -1).clone(), layer)
    return cache


def generate(model: GPT2LMHeadModel, request: Request) -> list[int]:
    """The new tokens of the request run alone, greedy or by beams."""
    params: SamplingParams = request.sampling_params
    past_key_values = request.prefix.past_key_values if request.prefix is not None else None
    num_virtual_tokens = past_key_values.shape[2] if past_key_values is not None else 0
    prompt = list(request.prompt_token_ids)
    input_ids = torch.tensor([prompt[:1] * num_virtual_tokens + prompt])
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        past_key_values=prefix_cache(past_key_values, params.num_beams),
        do_sample=False,
        num_beams=params.num_beams,
        max_new_tokens=params.max_new_tokens,
        min_new_tokens=params.min_new_tokens,
        repetition_penalty=params.repetition_penalty,
        length_penalty=params.length_penalty if params.num_beams > 1 else None,
        early_stopping=params.early_stopping if params.num_beams > 1 else None,
        pad_token_id=model.config.eos_token_id,
    )
    new_tokens: list[int] = output[0, input_ids.shape[1] :].tolist()
    eos = model.config.eos_token_id
    return new_tokens[: new_tokens.index(eos) + 1] if eos in new_tokens else new_tokens


def mixture_log_probs(model: GPT2LMHeadModel, request: Request, said: list[int]) -> Tensor:
    """`[len(prompt) + len(said), vocab_size]` of a mixture: each prefix by itself over all the text, then averaged."""
    total = sum(part.weight for part in request.mix)
    probs = 0.0
    for part in request.mix:
        past_key_values = None if part.prefix is None else part.prefix.past_key_values
        own = logits(model, past_key_values, [*request.prompt_token_ids, *said]).double()
        probs = probs + part.weight / total * own.softmax(dim=-1)
    return torch.as_tensor(probs).log()


def generate_mixture(model: GPT2LMHeadModel, request: Request) -> list[int]:
    """The new tokens of a greedy mixture."""
    said: list[int] = []
    while len(said) < request.sampling_params.max_new_tokens and model.config.eos_token_id not in said:
        said.append(int(mixture_log_probs(model, request, said)[-1].argmax()))
    return said


@torch.no_grad()
def logits(model: GPT2LMHeadModel, prefix: Tensor | None, token_ids: list[int]) -> Tensor:
    """`[len(token_ids), vocab_size]` of a text after the prefix."""
    output = model(torch.tensor([token_ids]), past_key_values=prefix_cache(prefix, 1))
    result: Tensor = output.logits[0]
    return result
