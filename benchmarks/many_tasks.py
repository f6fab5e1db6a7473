"""Stores of many tasks, with as many different random prefixes of 10 virtual tokens in bfloat16.

Knows how tasks come into a store. Knows nothing of what is then asked.
"""

from contextlib import closing
from pathlib import Path

import torch
from rich.progress import track

from batching.pretrained import load_backbone
from prefix_store.formats import dump
from prefix_store.prefix import BackboneShape, BackboneSpec
from prefix_store.store import PrefixStore

NUM_VIRTUAL_TOKENS = 10
TENANT = "default"


def spec_of(model: Path) -> BackboneSpec:
    """As the engine's process tells it."""
    backbone = load_backbone(model, "cpu", "float32")
    return BackboneSpec(backbone.name, backbone.shape, backbone.fingerprint)


def task_name(number: int) -> str:
    return f"task-{number}"


def prefix_bytes(shape: BackboneShape) -> int:
    """What one prefix takes in memory."""
    return shape.n_layer * 2 * NUM_VIRTUAL_TOKENS * shape.n_embd * torch.bfloat16.itemsize


def publish_many(path: Path, spec: BackboneSpec, num_tasks: int) -> None:
    """Make a store of so many tasks, published one by one as uploads are, each durable before the next."""
    size = (spec.shape.n_layer, 2, NUM_VIRTUAL_TOKENS, spec.shape.n_head, spec.shape.head_dim)
    generator = torch.Generator().manual_seed(num_tasks)
    with closing(PrefixStore(path, backbone=spec)) as store:
        for number in track(range(num_tasks), f"publishing {num_tasks}"):
            body = dump(torch.randn(size, generator=generator).bfloat16(), {"backbone": spec.fingerprint})
            store.publish(
                TENANT,
                task_name(number),
                upload=body,
                native=body,
                kind="prefix",
                num_virtual_tokens=NUM_VIRTUAL_TOKENS,
                backbone_checked=True,
            )
