"""Prefix-tuning (Li & Liang 2021): the module that is trained, and the loss of rows under their own prefixes.

Knows the frozen backbone and tensors. Knows nothing of optimizers, epochs or files. The reparametrisation is PEFT's
`PrefixEncoder`, `Embedding(P, n_embd) -> Linear(n_embd, width) -> tanh -> Linear(width, 2 * n_layer * n_embd)`; the
forward is ours, because PEFT's gives every row of a batch the same prefix.
"""

from collections.abc import Sequence

import torch
from peft import PrefixEncoder, PrefixTuningConfig
from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from prefix_store.formats import from_peft
from prefix_store.prefix import BackboneShape
from training.backbone import FrozenBackbone
from training.encoding import IGNORED, Batch
from training.errors import BadSettings
from training.settings import Settings

# B rows, T tokens per row, P virtual tokens of a task, W those of the longest prefix, H heads, D head_dim


class TunedPrefix(torch.nn.Module):
    """What is trained for one task: the MLP; or, where there is none, the keys and values themselves, each head's as a
    matrix `[P, D]` in `heads`. Only what it computes, keys and values, outlives the training."""

    indices: Tensor

    def __init__(self, backbone: FrozenBackbone, settings: Settings) -> None:
        super().__init__()
        self.shape: BackboneShape = backbone.shape
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            encoder = PrefixEncoder(peft_config(backbone.shape, settings))
        if settings.init_text is not None:
            activations = activations_of(backbone, settings.init_text, settings.num_virtual_tokens)
            start_as(encoder, activations)
        self.register_buffer("indices", torch.arange(settings.num_virtual_tokens), persistent=False)
        self.encoder = encoder if settings.mlp_width else None
        if self.encoder is None:
            by_head = from_peft(encoder.embedding.weight.detach(), self.shape).transpose(2, 3)  # [n_layer, 2, H, P, D]
            self.heads = torch.nn.ParameterList(matrix.clone() for matrix in by_head.flatten(0, 2))
        self.to(backbone.device)

    def forward(self) -> Tensor:
        """Keys and values, `[n_layer, 2, P, H, D]` in float32."""
        if self.encoder is not None:
            flat = self.encoder(self.indices)  # [P, n_layer * 2 * n_embd]
            return from_peft(flat, self.shape)
        by_head = torch.stack([*self.heads]).reshape(self.shape.n_layer, 2, self.shape.n_head, -1, self.shape.head_dim)
        return by_head.transpose(2, 3).contiguous()


def peft_config(shape: BackboneShape, settings: Settings) -> PrefixTuningConfig:
    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=settings.num_virtual_tokens,
        token_dim=shape.n_embd,
        num_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_transformer_submodules=1,
        prefix_projection=settings.mlp_width > 0,
        encoder_hidden_size=settings.mlp_width or shape.n_embd,
    )


@torch.no_grad()
def activations_of(backbone: FrozenBackbone, text: str, num_virtual_tokens: int) -> Tensor:
    """The backbone's keys and values of a text's first tokens, repeated where it is short: PEFT's flat
    `[P, n_layer * 2 * n_embd]`, in float32."""
    ids = backbone.token_ids(text)
    if not ids:
        raise BadSettings("init_text is empty; expected words, such as 'table-to-text:'")
    repeated = (ids * num_virtual_tokens)[:num_virtual_tokens]
    cache = backbone.model(torch.tensor([repeated], device=backbone.device), use_cache=True).past_key_values
    flat: Tensor = prompt_embeddings_from_past_key_values(cache, num_virtual_tokens=num_virtual_tokens)
    return flat.float().cpu()


@torch.no_grad()
def start_as(encoder: PrefixEncoder, activations: Tensor) -> None:
    """Make the module compute `activations` `[P, n_layer * 2 * n_embd]`, and change it as little as that needs.

    The authors fit the MLP to the activations by 500 steps of Adam. The least-squares change of its last layer is where
    gradient descent on that layer ends, and exact wherever the MLP is wider than the prefix is long.
    """
    if not encoder.prefix_projection:
        encoder.load_prompt_embeddings(activations)
        return
    hidden = encoder.transform[1](encoder.transform[0](encoder.embedding.weight))  # [P, width]
    error = activations - encoder.transform[2](hidden)  # [P, n_layer * 2 * n_embd]
    change = torch.linalg.pinv(hidden.double()) @ error.double()  # [width, n_layer * 2 * n_embd]
    encoder.transform[2].weight += change.float().T


def losses(backbone: FrozenBackbone, prefixes: Sequence[Tensor], owners: Sequence[int], batch: Batch) -> Tensor:
    """Run rows of several tasks in one forward pass, each row under its task's prefix.

    `prefixes[i]` is `[n_layer, 2, P_i, H, D]` and row b has the prefix `owners[b]`. Returns, for each prefix, the sum
    of the cross-entropies of its rows' answer tokens, `[len(prefixes)]` in float32. No row's part depends on another
    row.
    """
    lengths = torch.tensor([prefix.shape[2] for prefix in prefixes], device=backbone.device)
    row_owners = torch.tensor(owners, device=backbone.device)  # [B]
    cache, prefix_mask = per_row_cache(prefixes, row_owners, lengths, backbone.dtype)
    positions = lengths[row_owners, None] + torch.arange(batch.ids.shape[1], device=backbone.device)  # [B, T]
    with backbone.autocast():
        hidden = backbone.model.transformer(
            input_ids=batch.ids,
            attention_mask=torch.cat([prefix_mask, batch.mask], dim=1),  # [B, W + T]
            position_ids=positions.clamp(max=backbone.shape.n_positions - 1),  # only padding reaches past the context
            past_key_values=cache,
        ).last_hidden_state  # [B, T, n_embd]
        rows, columns = (batch.labels != IGNORED).nonzero(as_tuple=True)
        logits = backbone.model.lm_head(hidden[rows, columns])  # [N, V], of the answers' tokens alone
    token_losses = F.cross_entropy(logits.float(), batch.labels[rows, columns], reduction="none")  # [N]
    return token_losses.new_zeros(len(prefixes)).index_add(0, row_owners[rows], token_losses)


def per_row_cache(
    prefixes: Sequence[Tensor], row_owners: Tensor, lengths: Tensor, dtype: torch.dtype
) -> tuple[DynamicCache, Tensor]:
    """Stack every row's own prefix, padded in front to the longest: the cache, and its mask `[B, W]`."""
    W = int(lengths.max())
    padded = torch.stack([F.pad(prefix, (0, 0, 0, 0, W - prefix.shape[2], 0)) for prefix in prefixes])
    per_row = padded.to(dtype)[row_owners].permute(1, 2, 0, 4, 3, 5)  # [n_layer, 2, B, H, W, D]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(per_row):
        cache.update(keys, values, layer)
    mask = torch.arange(W, device=lengths.device) >= (W - lengths[row_owners])[:, None]  # [B, W]
    return cache, mask.long()
