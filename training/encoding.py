"""Turns examples into token ids, orders them, and pads them into batches.

Knows the template and the tokenizer. Knows nothing of prefixes. The text form is that of the paper, the prompt
` {inputs} <|endoftext|>` and the answer ` target<|endoftext|>`; the two are encoded apart, since at serving time the
model is given the prompt alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.backbone import FrozenBackbone
from training.errors import BadExamples, BadSettings
from training.examples import Example
from training.settings import PLACE

# B rows, T tokens per row
IGNORED = -100  # a label that counts for nothing in the loss
WINDOW = 20  # batches


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt and one answer, as token ids; the answer ends with `<|endoftext|>`."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Every pair that fits the context, one for each target of each example, and how many did not fit."""

    pairs: tuple[Pair, ...]
    num_too_long: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`ids` and `mask` `[B, T]`; `labels` `[B, T]` holds at t the token after t where that belongs to an answer."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def encode(examples: Sequence[Example], backbone: FrozenBackbone, template: str, num_virtual_tokens: int) -> Encoded:
    """Raises `BadExamples` when no pair fits beside the prefix, `BadSettings` when none could."""
    end: int = backbone.tokenizer.eos_token_id
    room = backbone.shape.n_positions - num_virtual_tokens
    if room < 2:
        context = backbone.shape.n_positions
        raise BadSettings(f"{num_virtual_tokens} virtual tokens leave no room; the backbone's context is {context}")
    pairs = [
        Pair(prompt, (*backbone.token_ids(f" {target}"), end))
        for example in examples
        for prompt in [tuple(backbone.token_ids(template.replace(PLACE, example.inputs)))]
        for target in example.targets
    ]
    fitting = tuple(pair for pair in pairs if pair.num_tokens <= room and pair.prompt)
    if not fitting:
        raise BadExamples(f"none of {len(pairs)} pairs has 1 to {room} tokens, what the prefix leaves of the context")
    return Encoded(fitting, len(pairs) - len(fitting))


def shuffled(pairs: Sequence[Pair], batch_size: int, seed: int, epoch: int) -> list[list[Pair]]:
    """The batches of one epoch in their order: a function of the seed and the epoch alone, so that a resumed run sees
    the same. Rows of like length come together where chance has them within `WINDOW` batches, for less padding."""
    chance = random.Random(f"{seed} {epoch}")
    order = list(pairs)
    chance.shuffle(order)
    batches = []
    for window in cut(order, WINDOW * batch_size):
        batches += cut(sorted(window, key=lambda pair: pair.num_tokens), batch_size)
    chance.shuffle(batches)
    return batches


def cut(pairs: list[Pair], size: int) -> list[list[Pair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def pad(pairs: Sequence[Pair], device: torch.device) -> Batch:
    width = max(pair.num_tokens for pair in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, pair in enumerate(pairs):
        ids[row, : pair.num_tokens] = torch.tensor([*pair.prompt, *pair.answer])
        mask[row, : pair.num_tokens] = 1
        labels[row, len(pair.prompt) - 1 : pair.num_tokens - 1] = torch.tensor(pair.answer)
    return Batch(ids.to(device), mask.to(device), labels.to(device))
