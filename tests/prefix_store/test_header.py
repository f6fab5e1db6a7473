"""The strict check of a header: what is plainly right passes, everything else is InvalidPrefix and nothing else."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from prefix_store.errors import InvalidPrefix
from prefix_store.header import MAX_HEADER_BYTES, TensorEntry, read_header
from tests.prefix_store.support import container, entry, native_file

GOOD = container({"x": entry([2, 3], 24)}, bytes(24))
TWO = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def two(start: int, end: int) -> dict[str, object]:
    return {**TWO, "y": {"dtype": "F32", "shape": [2], "data_offsets": [start, end]}}


BAD = {
    "empty": b"",
    "7 bytes": b"1234567",
    "no header": bytes(8),
    "header beyond the body": (100).to_bytes(8, "little") + b"{}",
    "header of 2^64-1": b"\xff" * 8 + b"{}",
    "header of 64 KiB + 1": container(b"{" + b" " * (MAX_HEADER_BYTES - 1) + b"}"),
    "not UTF-8": container(b'{"\xff": 1}'),
    "byte order mark": container(b"\xef\xbb\xbf{}"),
    "UTF-16": container("{}".encode("utf-16")),
    "not JSON": container(b"{x}"),
    "truncated JSON": container(b'{"x": {"dtype": "F32"}'),
    "an array": container([]),
    "null": container(None),
    "leading space": container(b' {"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "trailing newline": container(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}\n', bytes(4)),
    "trailing NUL": container(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}\0', bytes(4)),
    "too deep": container(b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    "NaN": container(b'{"x": NaN}'),
    "5,000 digits": container(b'{"x": ' + b"9" * 5000 + b"}"),
    "duplicate tensor": container(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "duplicate metadata key": container(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "duplicate metadata": container(b'{"__metadata__":{},"__metadata__":{}}'),
    "duplicate dtype": container(
        b'{"x":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "metadata a list": container({"__metadata__": []}),
    "metadata null": container({"__metadata__": None}),
    "metadata a number": container({"__metadata__": {"steps": 3}}),
    "metadata half a surrogate pair": container({"__metadata__": {"note": "\ud800"}}),
    "overlapping offsets": container(two(4, 12), bytes(12)),
    "the same offsets twice": container(two(0, 8), bytes(8)),
    "a hole": container(two(12, 20), bytes(20)),
    "a hole at the start": container({"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    "trailing bytes": GOOD + b"\0",
    "2 bytes missing": GOOD[:-2],
    "bytes without a tensor": container({}, bytes(4)),
    "offsets backwards": container({"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
    "offsets negative": container({"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)),
    "offsets of three": container({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, bytes(8)),
    "offsets as floats": container({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}}, bytes(8)),
    "shape of true": container({"x": entry([True], 4)}, bytes(4)),
    "shape of text": container({"x": entry("2", 8)}, bytes(8)),
    "shape negative twice": container({"x": entry([-1, -1], 4)}, bytes(4)),
    "shape [2, 2^63]": container({"x": entry([2, 2**63], 0)}),
    "shape [0, 2^63]": container({"x": entry([0, 2**63], 0)}),
    "shape [0, 2^62, 2^62]": container({"x": entry([0, 2**62, 2**62], 0)}),
    "shape [2^32, 2^32] that wraps to 0": container({"x": entry([2**32, 2**32], 0)}),
    "rank 0": container({"x": entry([], 4)}, bytes(4)),
    "rank 10,000": container({"x": entry([1] * 10_000, 4)}, bytes(4)),
    "an unknown field": container({"x": {**entry([1], 4), "more": 1}}, bytes(4)),
    "a missing field": container({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "an entry of null": container({"x": None}),
    "dtype a list": container({"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a name of half a surrogate pair": container({"\ud800": entry([1], 4)}, bytes(4)),
    "200,000 tensors": container({f"t{i}": {} for i in range(200_000)}),
    "pickle": b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s." * 9,
    "zip": b"PK\x03\x04\x14\x00\x08\x08\x08\x00" + bytes(100),
    "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(100),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
} | {
    f"dtype {dtype}": container({"x": entry([4], 4 * bits // 8, dtype)}, bytes(4 * bits // 8))
    for dtype, bits in {
        "F4": 4, "F6_E2M3": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F64": 64, "C64": 64, "BOOL": 8, "I8": 8, "I32": 32,
        "I64": 64, "U8": 8, "f32": 32, "": 32,
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_not_plainly_right_is_refused_in_a_short_sentence(body: bytes) -> None:
    with pytest.raises(InvalidPrefix) as refused:
        read_header(body)
    assert len(str(refused.value)) < 400


def test_what_the_library_writes_is_read() -> None:
    tensors = {"b": torch.zeros(2, 3), "a": torch.zeros(4, dtype=torch.bfloat16)}
    header = read_header(save(tensors, metadata={"trained on": "Ünïcode"}))
    assert header.metadata == {"trained on": "Ünïcode"}
    assert header.tensors == {"b": TensorEntry("F32", (2, 3), 0, 24), "a": TensorEntry("BF16", (4,), 24, 32)}


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    refuses_or_reads(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NEARLY_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64"]) | JSON,
        "shape": st.lists(st.integers(-1, 4) | st.just(2**63), max_size=6) | JSON,
        "data_offsets": st.lists(st.integers(-4, 64), min_size=2, max_size=2) | JSON,
    }
)
NEARLY_HEADERS = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), NEARLY_ENTRIES | JSON, max_size=3)


@given(NEARLY_HEADERS, st.binary(max_size=64))
def test_no_header_raises_anything_else(header: dict[str, object], payload: bytes) -> None:
    refuses_or_reads(container(header, payload))


@given(st.integers(0, len(native_file()) - 1), st.integers(0, 255))
def test_no_changed_byte_raises_anything_else(place: int, value: int) -> None:
    body = bytearray(native_file())
    body[place] = value
    refuses_or_reads(bytes(body))


def refuses_or_reads(body: bytes) -> None:
    """What passes the check must also be read, and read alike, by the library."""
    try:
        header = read_header(body)
    except InvalidPrefix:
        return
    tensors = load(body)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in header.tensors.items()
    }
    assert json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")]).get("__metadata__", {}) == header.metadata
