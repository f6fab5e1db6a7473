"""Reads checkpoints by transformers, which takes a hundred megabytes to import and is not needed to serve.

Knows transformers, directories and hub ids. Knows nothing of how a forward pass is computed.
"""

import re
from pathlib import Path

from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from batching.checkpoint import BackboneError, Checkpoint
from batching.gpt2 import Backbone, float_dtype_of, resolve_device

LAYER = re.compile(r"(?:transformer\.)?h\.(\d+)\.")


def read_checkpoint(model: str | Path, device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Read any GPT-2 by directory or hub id, for a device and one of `DTYPES`.

    Raises `BackboneError` with the reason if it cannot be.
    """
    try:
        config = AutoConfig.from_pretrained(model)
    except Exception as error:  # a config.json of other values raises whatever its reader raises
        hint = "" if Path(model).is_dir() else " (there is no such folder; as a name on the hub)"
        raise BackboneError(f"no model could be read from {str(model)!r}{hint}: {error}") from error
    if not isinstance(config, GPT2Config):
        raise BackboneError(f"{str(model)!r} is a {config.model_type!r} model; expected 'gpt2'")
    try:
        loaded, info = GPT2LMHeadModel.from_pretrained(model, dtype="auto", output_loading_info=True)
    except Exception as error:  # a truncated or foreign file raises whatever its reader raises
        raise BackboneError(f"the weights of {str(model)!r} could not be read: {error}") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise BackboneError(f"{str(model)!r} lacks weights or has them in another shape: {', '.join(missing[:4])}")
    layers = {int(found[1]) for key in info["unexpected_keys"] if (found := LAYER.match(key))}
    if unread := sorted(layer for layer in layers if layer >= config.n_layer):
        raise BackboneError(
            f"{str(model)!r} has weights of h.{unread[0]}, but its config.json says n_layer {config.n_layer}"
        )
    return Checkpoint.of(
        loaded, Path(model).name or Path(model).resolve().name, float_dtype_of(dtype, resolve_device(device))
    )


def load_backbone(
    model: str | Path, device: str = "auto", dtype: str = "auto", is_deterministic: bool = False
) -> Backbone:
    """Read a checkpoint and make it ready to serve, in this process. Raises `BackboneError`."""
    return Backbone.of(read_checkpoint(model, device, dtype), device, dtype, is_deterministic)
