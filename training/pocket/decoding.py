"""Greedy answers of a frozen GPT-2 that is given a prefix as its cache, many rows at a time, and their BLEU.

Knows the model, the prefix tensor and the tokenizer. Knows nothing of training. Position id = index in the cache,
prefix included; padding stands between prefix and prompt and is masked.
"""

from collections.abc import Sequence

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.pocket.packing import PROMPT_TEMPLATE

# B rows, P virtual tokens, T prompt positions after padding, H heads, D head_dim


def prefix_cache(past_key_values: Tensor, num_rows: int) -> DynamicCache:
    """Give every row the prefix `[n_layer, 2, P, H, D]` as its cache, `[B, H, P, D]` a layer."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past_key_values.permute(0, 1, 3, 2, 4)):  # [2, H, P, D]
        cache.update(*(part.float().expand(num_rows, -1, -1, -1).contiguous() for part in (key, value)), layer)
    return cache


@torch.no_grad()
def answer(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    past_key_values: Tensor,
    inputs: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Answer each input greedily, up to `<|endoftext|>`. A prefix of no virtual tokens is the bare backbone."""
    prompts = tokenizer([PROMPT_TEMPLATE.replace("{inputs}", text) for text in inputs])["input_ids"]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [prompts[i] for i in chosen]
        new_ids = _generate(model, past_key_values, batch, max_new_tokens, tokenizer.eos_token_id)
        for i, ids in zip(chosen, new_ids, strict=True):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, lower-cased, 13a tokens, no smoothing, over all references of each input."""
    depth = max(map(len, references))
    columns = [[refs[i] if i < len(refs) else None for refs in references] for i in range(depth)]
    scorer = BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    return float(scorer.corpus_score(list(answers), columns).score)


def _generate(
    model: GPT2LMHeadModel, past_key_values: Tensor, prompts: list[list[int]], max_new_tokens: int, end: int
) -> list[list[int]]:
    num_virtual_tokens, width, device = past_key_values.shape[2], max(map(len, prompts)), model.device
    ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts], device=device)  # [B, T]
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    mask = torch.cat([real.new_ones(len(prompts), num_virtual_tokens), real], dim=1)  # [B, P + T]
    cache = prefix_cache(past_key_values.to(device), len(prompts)) if num_virtual_tokens else DynamicCache()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, num_virtual_tokens:]  # [B, T]
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    columns: list[Tensor] = []
    for _ in range(max_new_tokens):
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        ids = logits.argmax(dim=-1, keepdim=True).masked_fill(done[:, None], end)  # [B, 1]
        columns.append(ids)
        done |= ids[:, 0] == end
        if done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [row[: row.index(end)] if end in row else row for row in torch.cat(columns, dim=1).tolist()]
