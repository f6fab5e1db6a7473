"""The frozen backbone: GPT-2's forward pass over the slots, one function for prompts and for decoding rows.

Weights come from transformers; the forward is ours. Knows nothing of tasks, requests or sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from batching import kernels
from batching.attention import AttentionPlan
from batching.kv_cache import KVCache
from batching.linear import ACTIVATIONS, Linear, make_linear
from prefix_store.fingerprint import fingerprint
from prefix_store.prefix import BackboneShape

# N new tokens of the step, C n_embd, H heads, D head_dim, V vocab_size

DTYPES = ("float32", "bfloat16", "float16", "int8")

MakeLinear = Callable[..., Linear]


class BackboneError(ValueError):
    """A checkpoint that cannot be served; the message says why."""


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
    dtype_name: str  # of `DTYPES`: with int8 weights all else is in `dtype`
    token_embeddings: Tensor  # [V, C]
    position_embeddings: Tensor  # [n_positions, C]
    blocks: tuple[Block, ...]
    final_norm: LayerNorm
    head: Linear  # C -> V

    @property
    def vocab_size(self) -> int:
        return self.token_embeddings.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embeddings.dtype

    @property
    def device(self) -> torch.device:
        return self.token_embeddings.device

    @property
    def device_name(self) -> str:
        return str(self.device)

    @classmethod
    def from_model(
        cls,
        model: GPT2LMHeadModel,
        name: str = "gpt2",
        device: str = "cpu",
        dtype: str = "float32",
        is_deterministic: bool = False,
    ) -> "Backbone":
        """Cast and pack any `GPT2LMHeadModel`, also a freshly made one; the model itself is left as it was.

        `dtype`: one of `DTYPES`; "int8" rounds the linear layers' weights to it, and what they read.

        `is_deterministic`: a token's hidden state has the same bits whatever else is computed with it. Raises
        `BackboneError` where that cannot be had.
        """
        config = model.config
        _check_config(config)
        target = resolve_device(device)
        if dtype == "int8" and target.type != "cpu":
            raise BackboneError("int8 is for CPUs; a GPU is served in bfloat16 or float16")
        float_dtype = float_dtype_of(dtype, target)
        weights = {
            key: value.detach().to(device=target, dtype=float_dtype) for key, value in model.state_dict().items()
        }
        shape = BackboneShape(config.n_layer, config.n_head, config.n_embd // config.n_head, config.n_positions)
        if is_deterministic and not kernels.can_attend(weights["transformer.wte.weight"].new_empty(shape.head_dim)):
            raise BackboneError(
                "the same bits in every batch need the compiled kernels: a CPU with AVX2, float32 or bfloat16, and a "
                "head size of 8 to 128"
            )
        make = partial(make_linear, is_int8=dtype == "int8", is_deterministic=is_deterministic)
        return cls(
            name=name,
            shape=shape,
            fingerprint=fingerprint(model.named_parameters()),
            eos_token_id=config.eos_token_id,
            dtype_name=dtype,
            token_embeddings=weights["transformer.wte.weight"],
            position_embeddings=weights["transformer.wpe.weight"],
            blocks=tuple(_make_block(weights, config, i, make) for i in range(config.n_layer)),
            final_norm=_make_norm(weights, "transformer.ln_f", config),
            head=make(weights["lm_head.weight"], None, out_dtype=torch.float32),
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        """`[N]` token ids -> `[N, C]`, without positions."""
        return self.token_embeddings[token_ids]

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


def load_backbone(
    model: str | Path, device: str = "auto", dtype: str = "auto", is_deterministic: bool = False
) -> Backbone:
    """Load any GPT-2 checkpoint by directory or hub id; raises `BackboneError` with the reason if it cannot be."""
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise BackboneError(f"no model could be read from {str(model)!r}: {error}") from error
    if not isinstance(config, GPT2Config):
        raise BackboneError(f"{str(model)!r} is a {config.model_type!r} model; expected 'gpt2'")
    try:
        loaded, info = GPT2LMHeadModel.from_pretrained(model, dtype="auto", output_loading_info=True)
    except Exception as error:  # a truncated or foreign file raises whatever its reader raises
        raise BackboneError(f"the weights of {str(model)!r} could not be read: {error}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise BackboneError(f"{str(model)!r} lacks weights or has them in another shape: {', '.join(missing[:4])}")
    chosen_device = resolve_device(device)
    return Backbone.from_model(
        loaded,
        Path(model).name,
        str(chosen_device),
        default_dtype(chosen_device) if dtype == "auto" else dtype,
        is_deterministic,
    )


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def default_dtype(device: torch.device) -> str:
    """bfloat16 where the device computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def float_dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """What one of `DTYPES` computes in, beside its int8 products."""
    return getattr(torch, default_dtype(device) if dtype == "int8" else dtype)  # type: ignore[no-any-return]


def _check_config(config: GPT2Config) -> None:
    if config.activation_function not in ACTIVATIONS:
        raise BackboneError(f"activation {config.activation_function!r} is none of {', '.join(ACTIVATIONS)}")
    if config.add_cross_attention:
        raise BackboneError("the checkpoint has cross-attention; a plain GPT-2 was expected")
    if not isinstance(config.eos_token_id, int):
        raise BackboneError(f"the checkpoint's eos_token_id is {config.eos_token_id!r}; expected one token id")


def _make_norm(weights: dict[str, Tensor], name: str, config: GPT2Config) -> LayerNorm:
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_epsilon)


def _make_block(weights: dict[str, Tensor], config: GPT2Config, index: int, make: MakeLinear) -> Block:
    name = f"transformer.h.{index}"

    def linear(part: str, activation: str | None = None) -> Linear:
        # transformers keeps GPT-2's weights as [in, out] (its Conv1D)
        return make(weights[f"{name}.{part}.weight"].t(), weights[f"{name}.{part}.bias"], activation)

    return Block(
        norm_1=_make_norm(weights, f"{name}.ln_1", config),
        qkv=_make_qkv(weights, config, index, make),
        attention_out=linear("attn.c_proj"),
        norm_2=_make_norm(weights, f"{name}.ln_2", config),
        mlp_in=linear("mlp.c_fc", config.activation_function),
        mlp_out=linear("mlp.c_proj"),
    )


def _make_qkv(weights: dict[str, Tensor], config: GPT2Config, index: int, make: MakeLinear) -> Linear:
    """The attention's scale is folded into the query's weights: one product less for each layer and step."""
    head_dim = config.n_embd // config.n_head
    scale = head_dim**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= index + 1
    name = f"transformer.h.{index}.attn.c_attn"
    weight, bias = weights[f"{name}.weight"].t().clone(), weights[f"{name}.bias"].clone()  # [3C, C], [3C]
    weight[: config.n_embd] *= scale
    bias[: config.n_embd] *= scale
    return make(weight, bias)
