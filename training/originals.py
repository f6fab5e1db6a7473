"""Checkpoints of the original prefix-tuning code (Li & Liang 2021): reads them, and writes one that it loads.

Knows the names and shapes of its `PrefixTuning` module, and loads tensors alone (`weights_only=True`). Keys and values
alternate by layer, `[P, n_layer * 2, n_head, head_dim]`, which is PEFT's order too.

| what was trained | tensors |
|---|---|
| the MLP (the paper's) | `wte.weight` `[P, n_embd]`, `control_trans.{0,2}.{weight,bias}`; a deep one has `.4` as well |
| no MLP, from random | `control_trans` `[P * n_layer * 2 * n_embd]` |
| no MLP, from words | `control_trans` `[n_layer * 2, 1, n_head, P, head_dim]` |
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from prefix_store.formats import from_peft
from prefix_store.prefix import BackboneShape
from training.errors import NotConvertible

WEIGHTS = "pytorch_model.bin"
MLP_WEIGHT = re.compile(r"control_trans\.([0-9]+)\.weight")
# tanh(20) is 1 exactly in float32, so that the MLP that is written gives the keys and values bit for bit
SATURATED = 20.0


def read_original(path: Path, shape: BackboneShape) -> Tensor:
    """Keys and values `[n_layer, 2, P, n_head, head_dim]`. Raises `NotConvertible`."""
    weights = load_weights(path)
    if any(name.startswith("wte2.") for name in weights):
        raise NotConvertible(f"{path} was trained as an infix, which depends on the input; expected a prefix")
    if "control_trans" in weights:
        return _without_mlp(weights["control_trans"], shape)
    if "wte.weight" not in weights or "control_trans.0.weight" not in weights:
        raise NotConvertible(f"{path} holds {sorted(weights)[:6]}; expected wte.weight and control_trans.…")
    return _through_mlp(weights, shape)


def load_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file raises whatever its reader raises
        raise NotConvertible(f"{path} is no checkpoint of tensors alone: {error}") from error
    if not isinstance(weights, dict) or not all(_is_named_tensor(*item) for item in weights.items()):
        raise NotConvertible(f"{path} is no state dict; expected names with tensors")
    return weights


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _through_mlp(weights: dict[str, Tensor], shape: BackboneShape) -> Tensor:
    layers = sorted(int(found[1]) for name in weights if (found := MLP_WEIGHT.fullmatch(name)))
    x = weights["wte.weight"].float()  # [P, n_embd]
    try:
        for layer in layers:
            x = torch.tanh(x) if layer else x
            x = torch.nn.functional.linear(
                x, weights[f"control_trans.{layer}.weight"].float(), weights[f"control_trans.{layer}.bias"].float()
            )
    except (KeyError, RuntimeError) as error:
        raise NotConvertible(f"control_trans is not the MLP that was expected: {error}") from error
    num_values = 2 * shape.n_layer * shape.n_embd
    if x.ndim != 2:
        raise NotConvertible(f"wte.weight is {list(weights['wte.weight'].shape)}; expected [virtual tokens, n_embd]")
    if x.shape[1] != num_values:
        hint = "; this one tunes embeddings alone" if x.shape[1] == shape.n_embd else ""
        raise NotConvertible(
            f"control_trans gives {x.shape[1]} values a position; this backbone has {num_values}{hint}"
        )
    return from_peft(x, shape)


def _without_mlp(values: Tensor, shape: BackboneShape) -> Tensor:
    width = 2 * shape.n_layer * shape.n_embd
    if values.ndim == 1 and values.numel() % width == 0:
        return from_peft(values.float().view(-1, width), shape)
    if values.ndim == 5 and values.shape[:3] == (2 * shape.n_layer, 1, shape.n_head):
        by_layer = values.float().view(shape.n_layer, 2, shape.n_head, -1, shape.head_dim)  # [n_layer, 2, H, P, D]
        return by_layer.permute(0, 1, 3, 2, 4).contiguous()
    raise NotConvertible(f"control_trans is {list(values.shape)}; it does not fit {shape}")


def write_original(folder: Path, past_key_values: Tensor, shape: BackboneShape) -> None:
    """Write `pytorch_model.bin` and `config.json` with an MLP of as many hidden units as there are virtual tokens, one
    for each. Raises `NotConvertible` for more virtual tokens than `n_embd`."""
    flat = past_key_values.permute(2, 0, 1, 3, 4).reshape(past_key_values.shape[2], -1).float()  # [P, n_layer*2*n_embd]
    num_virtual_tokens, num_values = flat.shape
    if num_virtual_tokens > shape.n_embd:
        raise NotConvertible(f"{num_virtual_tokens} virtual tokens; the original form can hold {shape.n_embd} here")
    one_hot = torch.eye(num_virtual_tokens, shape.n_embd)
    weights = {
        "wte.weight": one_hot,
        "control_trans.0.weight": SATURATED * one_hot,
        "control_trans.0.bias": torch.zeros(num_virtual_tokens),
        "control_trans.2.weight": flat.T.contiguous(),
        "control_trans.2.bias": torch.zeros(num_values),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(original_config(num_virtual_tokens, shape), indent=2) + "\n")


def original_config(num_virtual_tokens: int, shape: BackboneShape) -> dict[str, object]:
    """What the original `PrefixTuning.__init__` reads."""
    return {
        "model_type": "gpt2",
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "n_positions": shape.n_positions,
        "n_ctx": shape.n_positions,
        "optim_prefix": True,
        "preseqlen": num_virtual_tokens,
        "mid_dim": num_virtual_tokens,
        "use_infix": False,
        "prefix_dropout": 0.0,
        "init_random": "no",
        "lowdata": False,
        "train_weights": "no",
        "format_mode": "cat",
        "_my_arg_tune_mode": "prefixtune",
        "_my_arg_task_mode": "data2text",
    }
