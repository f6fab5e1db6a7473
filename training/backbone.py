"""The frozen backbone as training needs it: transformers' own model, never changed, and what identifies it.

Knows transformers. Knows nothing of prefixes or data.
"""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from prefix_store.fingerprint import fingerprint
from prefix_store.prefix import BackboneShape
from training.errors import BadBackbone, BadSettings

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, eq=False)
class FrozenBackbone:
    """One GPT-2 in float32 that computes in `precision` (`float32` or `bfloat16`), without dropout or gradients.

    `fingerprint` is that of the weights as stored, by which the server knows what a prefix was trained on.
    """

    name: str
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerBase
    shape: BackboneShape
    fingerprint: str
    precision: str

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def token_ids(self, text: str) -> list[int]:
        """As the server reads a prompt: `<|endoftext|>` in the text is the token, and nothing is added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def load_backbone(model: str | Path, device: str = "auto", precision: str = "auto") -> FrozenBackbone:
    """Load a GPT-2 and its tokenizer by directory or hub id. Raises `BadBackbone` with the reason, `BadSettings` for an
    unknown precision."""
    if precision not in PRECISIONS:
        raise BadSettings(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    config = read_config(model)
    if config.activation_function == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, in one kernel
    chosen = device_named(device)
    try:
        stored, report = GPT2LMHeadModel.from_pretrained(model, config=config, dtype="auto", output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # a truncated or foreign file raises whatever its reader raises
        raise BadBackbone(f"{str(model)!r} could not be loaded: {error}") from error
    check_tokenizer(tokenizer, config, str(model))
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise BadBackbone(f"{str(model)!r} lacks weights or has them in another shape: {', '.join(missing[:4])}")
    name = os.fsencode(Path(model).name).decode(errors="replace")  # it goes into each prefix's file
    return freeze(stored, tokenizer, name, chosen, precision)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: GPT2Config, model: str) -> None:
    """Raises `BadBackbone` for one that texts cannot be trained on."""
    if getattr(tokenizer, "vocab_size", 0) == 0:  # what transformers makes where there is no file
        raise BadBackbone(f"no tokenizer beside the model {model!r}; expected a tokenizer.json")
    if len(tokenizer) > config.vocab_size:
        raise BadBackbone(
            f"the tokenizer of {model!r} has {len(tokenizer)} tokens; the backbone has {config.vocab_size}"
        )
    if tokenizer.eos_token_id is None:
        raise BadBackbone(f"the tokenizer of {model!r} names no end-of-text token (eos_token)")


def freeze(
    stored: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, name: str, device: torch.device, precision: str
) -> FrozenBackbone:
    """Take over a model that is as it was stored; it is cast, moved and frozen in place."""
    made_of = fingerprint(stored.named_parameters())
    model = stored.float().to(device).eval().requires_grad_(False)
    chosen = default_precision(device) if precision == "auto" else precision
    return FrozenBackbone(name, model, tokenizer, shape_of(model.config), made_of, chosen)


def read_config(model: str | Path) -> GPT2Config:
    """A model's configuration alone. Raises `BadBackbone`."""
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        hint = "" if Path(model).is_dir() else " (there is no such folder; as a name on the hub)"
        raise BadBackbone(f"no model could be read from {str(model)!r}{hint}: {error}") from error
    if not isinstance(config, GPT2Config):
        raise BadBackbone(f"{str(model)!r} is a {config.model_type!r} model; expected 'gpt2'")
    return config


def shape_of(config: GPT2Config) -> BackboneShape:
    return BackboneShape(config.n_layer, config.n_head, config.n_embd // config.n_head, config.n_positions)


def device_named(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises `BadSettings` for one that torch cannot compute on."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        raise BadSettings(f"no device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def default_precision(device: torch.device) -> str:
    """bfloat16 where the device computes in it, float32 elsewhere."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
