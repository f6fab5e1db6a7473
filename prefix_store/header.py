"""The strict check of a safetensors header, before the safetensors library sees a byte.

Knows the container: eight bytes of length, a JSON header, tensors end to end. Knows nothing of prefixes.

The library (0.8.0) accepts duplicate keys, ranks of ten thousand and tens of megabytes of metadata, and raises several
unrelated exceptions. Here everything that is not plainly right is `InvalidPrefix`, and nothing else is ever raised.
"""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeGuard

from prefix_store.errors import InvalidPrefix, shown

MAX_HEADER_BYTES = 64 * 1024
MAX_RANK = 5  # that of past_key_values; PEFT's tensors have two
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it; `start` and `end` are bytes counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def read_header(body: bytes) -> Header:
    """Check the whole container and return its header. Raises `InvalidPrefix` and nothing else."""
    text = _header_text(body)
    fields = _header_fields(text)
    metadata = _metadata(fields.pop("__metadata__", {}))
    tensors = {name: _tensor_entry(name, fields[name]) for name in fields}
    _check_layout(tensors.values(), num_bytes=len(body) - _LENGTH_BYTES - len(text))
    return Header(metadata, tensors)


def _header_text(body: bytes) -> bytes:
    if len(body) < _LENGTH_BYTES:
        raise InvalidPrefix(f"the file has {len(body)} bytes; expected a safetensors file")
    num_header_bytes = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if num_header_bytes > MAX_HEADER_BYTES:
        raise InvalidPrefix(
            f"the header would be {num_header_bytes} bytes long, at most {MAX_HEADER_BYTES} are allowed: "
            "is this a safetensors file? (a pickle, a zip or a web page is not)"
        )
    text = body[_LENGTH_BYTES : _LENGTH_BYTES + num_header_bytes]
    if len(text) < num_header_bytes:
        raise InvalidPrefix(f"the header is {num_header_bytes} bytes long, the file has {len(text)} left: cut short?")
    # Spaces may follow, for alignment. Nothing may precede: a byte order mark or a space would be read differently
    # by different readers.
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise InvalidPrefix("the header must begin with '{' and end with '}' and, at most, spaces")
    return text


def _header_fields(text: bytes) -> dict[str, object]:
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, an integer of 5,000 digits
        raise InvalidPrefix(f"the header is not JSON: {reprlib.repr(str(error))}") from error
    if not isinstance(fields, dict):  # cannot be, after '{'; tells the type checker so
        raise InvalidPrefix("the header is not a JSON object")
    return fields


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidPrefix("the header names a key twice; readers disagree on which of the two counts")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise InvalidPrefix(f"the header holds {name}, which is not JSON")


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidPrefix("__metadata__ must be an object of strings")
    for key, text in value.items():
        if not isinstance(text, str) or not _is_unicode(key + text):
            raise InvalidPrefix(f"the metadata '{shown(key)}' must be a string of Unicode text")
    return value


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair is left alone, as JSON's escapes allow and UTF-8 does not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _tensor_entry(name: str, value: object) -> TensorEntry:
    label = f"tensor '{shown(name)}'"
    if not _is_unicode(name):
        raise InvalidPrefix(f"{label}: the name must be Unicode text")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidPrefix(f"{label}: expected dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidPrefix(f"{label}: dtype {shown(reprlib.repr(dtype))}, expected one of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or not 1 <= len(shape) <= MAX_RANK or 0 in shape:
        raise InvalidPrefix(f"{label}: shape {shown(reprlib.repr(shape))}, expected 1 to {MAX_RANK} positive integers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise InvalidPrefix(f"{label}: data_offsets {shown(reprlib.repr(offsets))}, expected two integers")
    entry = TensorEntry(dtype, tuple(shape), start=offsets[0], end=offsets[1])
    if entry.end - entry.start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise InvalidPrefix(f"{label}: its data_offsets do not span what {dtype} {shown(reprlib.repr(shape))} needs")
    return entry


def _are_counts(value: object) -> TypeGuard[list[int]]:
    # `type is`, since True is an instance of int. 2^63: no reader counts further, and no message grows with the digits
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_layout(tensors: Iterable[TensorEntry], num_bytes: int) -> None:
    """Every byte after the header belongs to exactly one tensor: no overlap, no hole, nothing behind the last."""
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start != position:
            raise InvalidPrefix(f"a tensor starts at byte {tensor.start}, expected {position}: tensors lie end to end")
        position = tensor.end
    if position != num_bytes:
        raise InvalidPrefix(f"the tensors need {position} bytes, {num_bytes} follow the header: cut short or added to?")
