"""Answers by transformers' own beam search, from a cache that holds what was tuned.

Knows one model and token ids. The cache and the prompt are one sequence to transformers: positions and mask go on
where the cache ends, and padding stands between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel

ROWS_AT_ONCE = 64
NO_TOKEN = 0  # stands where the cache is; never read

# B rows, C cached positions, P virtual tokens, T tokens of the longest prompt


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """`cache` holds C positions for each of the prompts, of which the last `num_seen` are real in all of them; before
    those `mask` `[B, C - num_seen]` tells. The prompts are what is still to be read."""

    model: GPT2LMHeadModel
    prompts: Sequence[Sequence[int]]
    cache: DynamicCache
    num_seen: int
    mask: Tensor | None = None

    @classmethod
    def behind(cls, model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], infix: Tensor) -> "Start":
        """Read all of each prompt but its last token, then put `infix` `[n_layer, 2, P, H, D]` behind it."""
        ids, mask = padded([prompt[:-1] for prompt in prompts], model.device)  # [B, T - 1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
        for layer, part in enumerate(infix.transpose(2, 3)):  # [2, H, P, D]
            cache.update(*part[:, None].expand(-1, len(prompts), -1, -1, -1), layer)
        return cls(model, [prompt[-1:] for prompt in prompts], cache, infix.shape[2], mask)


@torch.no_grad()
def search(start: Start, end: int, num_beams: int, max_new_tokens: int) -> list[list[int]]:
    """The best answer to each prompt, up to `<|endoftext|>` (`end`) and without it, or what the context leaves."""
    ids, mask = padded(start.prompts, start.model.device)  # [B, T]
    before = ids.new_zeros(len(ids), 0) if start.mask is None else start.mask
    mask = torch.cat([before, F.pad(mask, (start.num_seen, 0), value=1)], dim=1)  # [B, C + T]
    ids = F.pad(ids, (mask.shape[1] - ids.shape[1], 0), value=NO_TOKEN)
    start.cache.batch_repeat_interleave(num_beams)
    sequences = start.model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=start.cache,
        num_beams=num_beams,
        do_sample=False,
        max_new_tokens=min(max_new_tokens, start.model.config.n_positions - ids.shape[1]),
        eos_token_id=end,
        pad_token_id=end,
    )
    answers = sequences[:, ids.shape[1] :].tolist()
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, T]`, padded in front."""
    T = max(map(len, prompts))
    ids = [[NO_TOKEN] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, dtype=torch.long, device=device), torch.tensor(mask, dtype=torch.long, device=device)
