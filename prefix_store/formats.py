"""From bytes to `Prefix` or `PromptEmbeddings`, and from keys and values to the native file.

Knows the files of Polyprefix and of PEFT, and a backbone's shape. Knows no weights, tenants or versions.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from prefix_store.errors import InvalidPrefix, shown
from prefix_store.header import ITEM_BYTES, MAX_HEADER_BYTES, Header, read_header
from prefix_store.prefix import BackboneShape, Prefix, PromptEmbeddings

NATIVE_FORMAT = "polyprefix/1"
# Finite is not enough: a key of 3e38 makes attention NaN. 1e4 is far above any trained value and fits every dtype that
# is served, fp16 (65,504) included.
MAX_MAGNITUDE = 1e4
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def parse(body: bytes, shape: BackboneShape, fingerprint: str | None) -> Prefix | PromptEmbeddings:
    """Read a file of ours or of PEFT's; the tensor's name and shape tell which.

    A file that names the backbone it was made for (metadata `backbone`) must name `fingerprint`, unless that is None.
    PEFT's prefix tuning and CARTRIDGE write the same file, and so do its prompt tuning and P-tuning.
    `Prefix.revision` is the sha256 of the native file: of `body` itself where that is native, else of
    `dump(prefix.past_key_values, prefix.metadata)`. `metadata` leaves out `format`.
    Raises `InvalidPrefix`.
    """
    header = read_header(body)
    kind = _kind(header, shape)
    _check_backbone(header.metadata, fingerprint)
    tensor = _load_only_tensor(body)
    _check_values(tensor)
    metadata = {key: text for key, text in header.metadata.items() if key != "format"}
    if kind == "prompt_tuning":
        return PromptEmbeddings(tensor, kind, metadata)
    if kind == "prefix":
        return Prefix(tensor, hashlib.sha256(body).hexdigest(), kind, metadata)
    past_key_values = from_peft(tensor, shape)
    revision = hashlib.sha256(dump(past_key_values, metadata)).hexdigest()
    return Prefix(past_key_values, revision, kind, metadata)


def dump(past_key_values: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The native file of `[n_layer, 2, num_virtual_tokens, n_head, head_dim]` in fp32, fp16 or bf16.

    The same input gives the same bytes on every machine, which the safetensors library's own writer does not promise:
    it writes metadata in the order of a hash table. Raises `InvalidPrefix` for another dtype and for too much metadata.
    """
    raw = past_key_values.detach().cpu().contiguous()
    if raw.dtype not in _DTYPE_NAMES:
        raise InvalidPrefix(f"keys and values in {raw.dtype}; expected float32, float16 or bfloat16")
    entry = {"dtype": _DTYPE_NAMES[raw.dtype], "shape": list(raw.shape), "data_offsets": [0, raw.nbytes]}
    facts = dict(sorted({**metadata, "format": NATIVE_FORMAT}.items()))
    header = json.dumps({"__metadata__": facts, "past_key_values": entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensor begins at a multiple of eight bytes
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidPrefix(f"the metadata makes a header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are read")
    return len(header).to_bytes(8, "little") + header + raw.view(torch.uint8).numpy().tobytes()


def from_peft(prompt_embeddings: Tensor, shape: BackboneShape) -> Tensor:
    """PEFT's `[T, n_layer*2*n_embd]`, keys and values alternating by layer, as `[n_layer, 2, T, n_head, head_dim]`.

    As PEFT's own `PeftModel.get_prompt` does it, bit for bit.
    """
    T = prompt_embeddings.shape[0]
    by_token = prompt_embeddings.view(T, shape.n_layer, 2, shape.n_head, shape.head_dim)  # [T, n_layer, 2, H, D]
    return by_token.permute(1, 2, 0, 3, 4).contiguous()  # [n_layer, 2, T, H, D]


def max_file_bytes(shape: BackboneShape) -> int:
    """The size of the largest file that can be a prefix of this backbone: all positions but one, in fp32."""
    num_values = shape.n_layer * 2 * (shape.n_positions - 1) * shape.n_embd
    return 8 + MAX_HEADER_BYTES + num_values * ITEM_BYTES["F32"]


def _kind(header: Header, shape: BackboneShape) -> str:
    names = sorted(header.tensors)
    if names == ["past_key_values"]:
        return _native_kind(header, shape)
    if names == ["prompt_embeddings"]:
        return _peft_kind(header.tensors["prompt_embeddings"].shape, shape)
    if names == ["prefix_task_cols", "prefix_task_rows", "prompt_embeddings"]:
        raise InvalidPrefix(
            "this is PEFT multitask prompt tuning, one file for several tasks; expected a file for one task "
            "(prompt_embeddings * (prefix_task_cols[i] @ prefix_task_rows[i]), saved as prompt_embeddings)"
        )
    raise InvalidPrefix(
        f"{len(names)} tensors {shown(reprlib.repr(names))}; expected one, named past_key_values or prompt_embeddings"
    )


def _native_kind(header: Header, shape: BackboneShape) -> str:
    if header.metadata.get("format") != NATIVE_FORMAT:
        found = shown(header.metadata.get("format", ""))
        raise InvalidPrefix(f"past_key_values with the metadata format '{found}'; expected {NATIVE_FORMAT!r}")
    found_shape = header.tensors["past_key_values"].shape
    num_virtual_tokens = found_shape[2] if len(found_shape) == 5 else 0
    if found_shape != (shape.n_layer, 2, num_virtual_tokens, shape.n_head, shape.head_dim):
        raise InvalidPrefix(
            f"past_key_values is {_written(found_shape)}; this backbone needs [n_layer {shape.n_layer}, 2, "
            f"num_virtual_tokens, n_head {shape.n_head}, head_dim {shape.head_dim}]"
        )
    _check_num_virtual_tokens(num_virtual_tokens, shape)
    return "prefix"


def _peft_kind(found_shape: tuple[int, ...], shape: BackboneShape) -> str:
    kinds = {shape.n_layer * 2 * shape.n_embd: "prefix_tuning", shape.n_embd: "prompt_tuning"}
    if len(found_shape) != 2 or found_shape[1] not in kinds:
        raise InvalidPrefix(
            f"prompt_embeddings is {_written(found_shape)}; this backbone needs [num_virtual_tokens, "
            f"n_layer*2*n_embd = {shape.n_layer * 2 * shape.n_embd}] (prefix tuning, CARTRIDGE) or "
            f"[num_virtual_tokens, n_embd = {shape.n_embd}] (prompt tuning, P-tuning)"
        )
    _check_num_virtual_tokens(found_shape[0], shape)
    return kinds[found_shape[1]]


def _check_num_virtual_tokens(num_virtual_tokens: int, shape: BackboneShape) -> None:
    if not 1 <= num_virtual_tokens < shape.n_positions:
        raise InvalidPrefix(
            f"{num_virtual_tokens} virtual tokens; expected 1 to {shape.n_positions - 1}, "
            f"since the context of {shape.n_positions} must have room for a prompt"
        )


def _check_backbone(metadata: Mapping[str, str], fingerprint: str | None) -> None:
    made_for = metadata.get("backbone")
    if fingerprint is not None and made_for is not None and made_for != fingerprint:
        raise InvalidPrefix(
            f"made for the backbone '{shown(made_for[:12])}…'; this one is {fingerprint[:12]!r}…: "
            "a prefix works only on the weights it was trained on"
        )


def _load_only_tensor(body: bytes) -> Tensor:
    try:
        tensor: Tensor
        (tensor,) = load(body).values()
    except SafetensorError as error:  # the pre-check is stricter than the library; this is the belt to its braces
        raise InvalidPrefix(f"the safetensors library refuses the file: {error}") from error
    return tensor


def _check_values(tensor: Tensor) -> None:
    # amax and amin hand a NaN on, and a NaN fails the comparison
    low, high = float(tensor.amin()), float(tensor.amax())
    if not (low >= -MAX_MAGNITUDE and high <= MAX_MAGNITUDE):
        raise InvalidPrefix(
            f"values from {low:g} to {high:g}; expected finite ones of magnitude up to {MAX_MAGNITUDE:g}"
        )


def _written(shape: tuple[int, ...]) -> str:
    return shown(str(list(shape)))
