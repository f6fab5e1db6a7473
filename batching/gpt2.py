"""The frozen backbone: GPT-2's forward pass over the slots, one function for prompts and for decoding rows.

Weights come from a checkpoint; the forward is ours. Knows nothing of tasks, requests or sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from batching import kernels
from batching.attention import AttentionPlan
from batching.checkpoint import HEAD, BackboneError, Checkpoint
from batching.kv_cache import KVCache
from batching.linear import Embedding, Linear, PackedLinear, make_embedding, make_linear
from prefix_store.prefix import BackboneShape

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

# N new tokens of the step, C n_embd, H heads, D head_dim, V vocab_size

DTYPES = ("float32", "bfloat16", "float16", "int8")

MakeLinear = Callable[..., Linear]
WeightOf = Callable[[str], Tensor]  # by transformers' name: a copy on the device


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    weight: Tensor  # [C]
    bias: Tensor  # [C]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    norm_1: LayerNorm
    qkv: Linear  # C -> 3C, the query part scaled
    attention_out: Linear  # C -> C
    norm_2: LayerNorm
    mlp_in: Linear  # C -> 4C, activation included
    mlp_out: Linear  # 4C -> C


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """One GPT-2, cast and packed for its device. `fingerprint` is that of the stored weights, before either."""

    name: str
    shape: BackboneShape
    fingerprint: str
    eos_token_id: int
    vocab_size: int
    dtype_name: str  # of `DTYPES`: with int8 weights all else is in `dtype`
    token_embeddings: Embedding  # [V, C]
    position_embeddings: Tensor  # [n_positions, C]
    blocks: tuple[Block, ...]
    final_norm: LayerNorm
    head: Linear  # C -> V

    @property
    def dtype(self) -> torch.dtype:
        return self.position_embeddings.dtype

    @property
    def device(self) -> torch.device:
        return self.position_embeddings.device

    @property
    def device_name(self) -> str:
        return str(self.device)

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", is_deterministic: bool = False
    ) -> "Backbone":
        """Pack the weights for a device; what it keeps of the checkpoint's memory is a copy.

        `dtype`: one of `DTYPES`; "int8" rounds the linear layers' weights to it, and what they read. The checkpoint has
        been cast for it (`float_dtype_of`).

        `is_deterministic`: a token's hidden state has the same bits whatever else is computed with it. Raises
        `BackboneError` where that cannot be had.
        """
        target = resolve_device(device)
        if target.type == "cuda":
            # It makes a plan for each shape, tens of milliseconds each, and prompts' pieces are of all shapes.
            torch.backends.cuda.enable_cudnn_sdp(False)
        dtype = default_dtype(target) if dtype == "auto" else dtype
        if dtype == "int8" and target.type != "cpu":
            raise BackboneError("int8 is for CPUs; a GPU is served in bfloat16 or float16")

        def weight_of(name: str) -> Tensor:
            return checkpoint.weights[name].to(target, copy=True)

        make = partial(make_linear, is_int8=dtype == "int8", is_deterministic=is_deterministic)
        position_embeddings, token_embeddings = weight_of("transformer.wpe.weight"), weight_of("transformer.wte.weight")
        if is_deterministic and not kernels.can_attend(position_embeddings.new_empty(checkpoint.shape.head_dim)):
            raise BackboneError(
                "the same bits in every batch need the compiled kernels: a CPU with AVX2, float32 or bfloat16, and a "
                "head size of 8 to 128"
            )
        is_tied = HEAD not in checkpoint.weights
        head = make(token_embeddings if is_tied else weight_of(HEAD), None, out_dtype=torch.float32)
        return cls(
            name=checkpoint.name,
            shape=checkpoint.shape,
            fingerprint=checkpoint.fingerprint,
            eos_token_id=checkpoint.eos_token_id,
            vocab_size=checkpoint.vocab_size,
            dtype_name=dtype,
            token_embeddings=make_embedding(token_embeddings, head if is_tied else None),
            position_embeddings=position_embeddings,
            blocks=tuple(_make_block(weight_of, checkpoint, i, make) for i in range(checkpoint.shape.n_layer)),
            final_norm=_make_norm(weight_of, "transformer.ln_f", checkpoint),
            head=head,
        )

    @classmethod
    def from_model(
        cls,
        model: "GPT2LMHeadModel",
        name: str = "gpt2",
        device: str = "cpu",
        dtype: str = "float32",
        is_deterministic: bool = False,
    ) -> "Backbone":
        """Serve any `GPT2LMHeadModel`, also a freshly made one; the model itself is left as it was."""
        checkpoint = Checkpoint.of(model, name, float_dtype_of(dtype, resolve_device(device)))
        return cls.of(checkpoint, device, dtype, is_deterministic)

    def embed(self, token_ids: Tensor) -> Tensor:
        """`[N]` token ids -> `[N, C]`, without positions."""
        return self.token_embeddings(token_ids)

    def forward(self, embeddings: Tensor, plan: AttentionPlan, cache: KVCache) -> Tensor:
        """Run the step's new tokens `[N, C]` (`embed`'s, or a prompt's own); returns their last hidden states `[N, C]`.

        Their keys and values are written to the cache at the plan's slots and positions.
        """
        H, D = self.shape.n_head, self.shape.head_dim
        x = embeddings + self.position_embeddings[plan.positions]
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(block.norm_1(x)).view(-1, 3, H, D)
            attention = plan.attend(qkv, cache.keys[layer], cache.values[layer])
            x = x + block.attention_out(attention)
            x = x + block.mlp_out(block.mlp_in(block.norm_2(x)))
        return self.final_norm(x)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[M, C]` -> `[M, V]` in float32."""
        return self.head(hidden_states).float()

    def warm_up(self, max_num_tokens: int, max_num_logits: int) -> None:
        """Have the code for the products of steps of any size up to this one, where a layer compiles it on demand."""
        block = self.blocks[0]  # the others' layers are of the same shapes
        for layer in (block.qkv, block.attention_out, block.mlp_in, block.mlp_out, self.head):
            if isinstance(layer, PackedLinear):
                layer.warm_up(max_num_logits if layer is self.head else max_num_tokens)


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one. Raises `BackboneError` for a device that there is not."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackboneError(f"no device {name!r}: {str(error).splitlines()[0]}") from error
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise BackboneError(f"no device {name!r}: torch {torch.__version__} finds {num_gpus} GPUs here")
    return device


def default_dtype(device: torch.device) -> str:
    """bfloat16 where the device computes in it; elsewhere float16 on a GPU, float32 on a CPU."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def float_dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """What one of `DTYPES`, or "auto", computes in, beside its int8 products."""
    return getattr(torch, default_dtype(device) if dtype in ("auto", "int8") else dtype)  # type: ignore[no-any-return]


def _make_norm(weight_of: WeightOf, name: str, checkpoint: Checkpoint) -> LayerNorm:
    return LayerNorm(weight_of(f"{name}.weight"), weight_of(f"{name}.bias"), checkpoint.layer_norm_epsilon)


def _make_block(weight_of: WeightOf, checkpoint: Checkpoint, index: int, make: MakeLinear) -> Block:
    name = f"transformer.h.{index}"

    def linear(part: str, activation: str | None = None) -> Linear:
        # transformers keeps GPT-2's weights as [in, out] (its Conv1D)
        return make(weight_of(f"{name}.{part}.weight").t(), weight_of(f"{name}.{part}.bias"), activation)

    return Block(
        norm_1=_make_norm(weight_of, f"{name}.ln_1", checkpoint),
        qkv=_make_qkv(weight_of, checkpoint, index, make),
        attention_out=linear("attn.c_proj"),
        norm_2=_make_norm(weight_of, f"{name}.ln_2", checkpoint),
        mlp_in=linear("mlp.c_fc", checkpoint.activation),
        mlp_out=linear("mlp.c_proj"),
    )


def _make_qkv(weight_of: WeightOf, checkpoint: Checkpoint, index: int, make: MakeLinear) -> Linear:
    """The attention's scale is folded into the query's weights: one product less for each layer and step."""
    shape = checkpoint.shape
    scale = shape.head_dim**-0.5 if checkpoint.scale_attn_weights else 1.0
    if checkpoint.scale_attn_by_inverse_layer_idx:
        scale /= index + 1
    name = f"transformer.h.{index}.attn.c_attn"
    weight, bias = weight_of(f"{name}.weight").t(), weight_of(f"{name}.bias")  # [3C, C], [3C]
    weight[: shape.n_embd] *= scale
    bias[: shape.n_embd] *= scale
    return make(weight, bias)
