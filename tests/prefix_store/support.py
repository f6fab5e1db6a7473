"""Builders of files, right and wrong, for a tiny backbone."""

import json

import torch
from torch import Tensor

from prefix_store.formats import dump
from prefix_store.prefix import BackboneShape, BackboneSpec
from prefix_store.store import PrefixStore
from prefix_store.tasks import Published
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import Principal

SHAPE = BackboneShape(n_layer=2, n_head=2, head_dim=8, n_positions=64)
BACKBONE = BackboneSpec(name="tiny", shape=SHAPE, fingerprint="ab" * 32)
OTHER_BACKBONE = BackboneSpec(name="tiny", shape=SHAPE, fingerprint="cd" * 32)


def keys_and_values(seed: int = 0, num_virtual_tokens: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (SHAPE.n_layer, 2, num_virtual_tokens, SHAPE.n_head, SHAPE.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


def native_file(seed: int = 0, num_virtual_tokens: int = 3) -> bytes:
    return dump(keys_and_values(seed, num_virtual_tokens), {"backbone": BACKBONE.fingerprint})


def container(header: bytes | object, payload: bytes = b"") -> bytes:
    """A safetensors file with exactly this header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(shape: object, num_bytes: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, num_bytes]}


def publish(
    store: PrefixStore, task_id: str = "poet", *, seed: int = 0, tenant: str = "default", **conditions: object
) -> Published:
    """Upload a native prefix that differs by `seed`."""
    body = native_file(seed)
    return store.publish(
        tenant,
        task_id,
        upload=body,
        native=body,
        kind="prefix",
        num_virtual_tokens=3,
        backbone_checked=True,
        **conditions,
    )


def authenticate(registry: TenantRegistry, secret: str) -> Principal:
    """Whom a key proves, as the server asks: by memory, and else by the registry."""
    remembered = registry.remembered(secret)
    return registry.prove(secret) if remembered is None else remembered.principal
