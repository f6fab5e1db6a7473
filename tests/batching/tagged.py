"""A hand-written model whose next token is a function of the task's tag and the row's own tokens, and of nothing else.

Its keys are the tokens themselves, and it reads them back from the slot: a row that sees a key of another's, or a key
that its slot's former owner left, says something else. Runs under the real engine, cache, sampler and beams.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from batching.attention import AttentionPlan
from batching.engine import Engine
from batching.kv_cache import KVCache
from prefix_store.prefix import BackboneShape, Prefix

VOCAB_SIZE = 24
EOS = VOCAB_SIZE - 1
CURSED = 0  # the forward raises wherever this token is among the new ones; the model itself never says it
NUM_STATES = 4093
SHAPE = BackboneShape(n_layer=1, n_head=1, head_dim=1, n_positions=64)

_LOGITS = torch.randn(NUM_STATES, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 3  # [states, V]
_LOGITS[:, CURSED] = -1e4
_LOGITS[:, EOS] -= 2  # so that answers are seldom of one token


def tagged_prefix(tag: int, num_virtual_tokens: int) -> Prefix:
    """The keys and values of a task's version: its tag, everywhere."""
    entries = torch.full((1, 2, num_virtual_tokens, 1, 1), float(tag))
    return Prefix(entries, revision=f"{tag}-{num_virtual_tokens}", kind="prefix")


def poisoned_prefix(num_virtual_tokens: int) -> Prefix:
    prefix = tagged_prefix(0, num_virtual_tokens)
    prefix.past_key_values[0, 0, -1] = math.nan
    return prefix


def next_logits(keys: list[float]) -> Tensor:
    """What the model gives after a row whose slot holds these keys: `[V]`."""
    return _LOGITS[int(_state(keys))]


def _state(keys: list[float]) -> float:
    """The keys in their order, as one number; NaN where any of them is."""
    state = 1.0
    for key in keys:
        state = math.fmod(state * 31 + key + 7, NUM_STATES)
    return state


@dataclass(eq=False)
class TaggedBackbone:
    """Looks like a `Backbone` to the engine. `num_raising` forward passes more will raise, whatever they hold."""

    shape: BackboneShape = SHAPE
    eos_token_id: int = EOS
    vocab_size: int = VOCAB_SIZE
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_raising: int = 0
    num_raised_alone: int = 0  # passes of one row, which nothing can save

    def embed(self, token_ids: Tensor) -> Tensor:
        return token_ids[:, None].float()  # [N, 1]

    def forward(self, embeddings: Tensor, plan: AttentionPlan, cache: KVCache) -> Tensor:
        """Write the new tokens into their slots; of each, the state of all that its slot holds up to it, `[N, 1]`."""
        if self.num_raising > 0:
            self.num_raising -= 1
            self.num_raised_alone += len(set(plan.slots.tolist())) == 1
            raise RuntimeError("this pass was to raise")
        if CURSED in embeddings[:, 0].tolist():
            raise RuntimeError("a cursed token")
        keys, values = cache.keys[0], cache.values[0]
        keys[plan.slots, :, plan.positions] = embeddings[:, None]
        values[plan.slots, :, plan.positions] = embeddings[:, None]
        pairs = zip(plan.slots.tolist(), plan.positions.tolist(), strict=True)
        states = [_state(keys[slot, 0, : position + 1, 0].tolist()) for slot, position in pairs]
        return torch.tensor(states)[:, None]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[M, 1]` -> `[M, V]`."""
        states = hidden_states[:, 0]
        known = torch.where(states.isfinite(), states, 0.0).long()
        return torch.where(states.isfinite()[:, None], _LOGITS[known], math.nan)


def tagged_engine(max_num_seqs: int) -> tuple[Engine, TaggedBackbone]:
    backbone = TaggedBackbone()
    return Engine(backbone, max_num_seqs=max_num_seqs), backbone  # type: ignore[arg-type]
