"""A GPT-2 as it was stored, cast to the type it will be served in: plain numbers and tensors.

So it goes through a file to another process: what read it, with all that was imported for reading, may be gone by the
time it is served. Knows nothing of how checkpoints are stored elsewhere.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batching.linear import ACTIVATIONS
from prefix_store.fingerprint import fingerprint
from prefix_store.prefix import BackboneShape

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

HEAD = "lm_head.weight"


class BackboneError(ValueError):
    """A checkpoint that cannot be served; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """`weights` have transformers' names, without the head's where it is the token embeddings (a tied one).

    `fingerprint` is that of the weights as stored, before they were cast.
    """

    name: str
    shape: BackboneShape
    eos_token_id: int
    activation: str
    layer_norm_epsilon: float
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    fingerprint: str
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: "GPT2LMHeadModel", name: str, dtype: torch.dtype) -> "Checkpoint":
        """The model itself is left as it was. Raises `BackboneError` where its kind of GPT-2 is not served."""
        config = model.config
        if config.activation_function not in ACTIVATIONS:
            raise BackboneError(f"activation {config.activation_function!r} is none of {', '.join(ACTIVATIONS)}")
        if config.add_cross_attention:
            raise BackboneError("the checkpoint has cross-attention; a plain GPT-2 was expected")
        if not isinstance(config.eos_token_id, int):
            raise BackboneError(f"the checkpoint's eos_token_id is {config.eos_token_id!r}; expected one token id")
        if not 0 <= config.eos_token_id < config.vocab_size:
            raise BackboneError(
                f"the checkpoint's eos_token_id is {config.eos_token_id}, which its vocab_size, {config.vocab_size}, "
                "does not have"
            )
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return cls(
            name=name,
            shape=BackboneShape(config.n_layer, config.n_head, config.n_embd // config.n_head, config.n_positions),
            eos_token_id=config.eos_token_id,
            activation=config.activation_function,
            layer_norm_epsilon=config.layer_norm_epsilon,
            scale_attn_weights=config.scale_attn_weights,
            scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
            fingerprint=fingerprint(parameters.items()),
            weights={name: parameter.to(dtype) for name, parameter in parameters.items()},
        )

    @property
    def vocab_size(self) -> int:
        return self.weights["transformer.wte.weight"].shape[0]


def write(stored: object, descriptor: int) -> None:
    """Write a checkpoint, and what is beside it, to an open file, which is closed."""
    with os.fdopen(descriptor, "wb") as file:
        torch.save(stored, file)


def read(descriptor: int) -> Any:
    """What `write` wrote, out of its own process: pickles are trusted. Closes the file.

    The tensors are the file's pages, not copies, and keep all of it for as long as one of them lives.
    """
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)  # where a name in /dev/fd is the same open file, not a new one
        return torch.load(f"/dev/fd/{descriptor}", mmap=True, weights_only=False)
    finally:
        os.close(descriptor)
