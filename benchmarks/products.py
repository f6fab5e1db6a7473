"""The bare matrix products of a decode step: what no engine can do without.

All 48 of GPT-2 small's blocks and the head, each over weights of its own, without bias, activation or anything between.
Knows nothing of an engine.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from batching.linear import PackedLinear, make_linear

Product = Callable[[Tensor], Tensor]


class Products:
    """`model`'s, by torch's two ways: plain, and over weights packed for oneDNN; and by the engine's own."""

    def __init__(self, model: GPT2LMHeadModel, is_int8: bool = False) -> None:
        weights = [weight for block in model.transformer.h for weight in _weights_of(block)]
        weights.append(model.lm_head.weight.detach())
        self._inputs = {weight.shape[1]: torch.randn(1, weight.shape[1]).to(weight) for weight in weights}
        self._widths = [weight.shape[1] for weight in weights]
        self._own: list[Product] = [make_linear(weight, None, is_int8=is_int8) for weight in weights]
        self._ways: list[list[Product]] = [[partial(F.linear, weight=weight) for weight in weights]]
        with suppress(RuntimeError):  # where the device or the dtype has no packing
            self._ways.append([PackedLinear(weight, None) for weight in weights])

    def seconds(self, num_rows: int) -> float:
        """All of them once, one after another, on `num_rows` rows: by the faster of torch's ways."""
        return min(self._seconds(way, num_rows) for way in self._ways)

    def own_seconds(self, num_rows: int) -> float:
        """As `seconds`, by the engine's own way."""
        return self._seconds(self._own, num_rows)

    @torch.inference_mode()
    def _seconds(self, products: Iterable[Product], num_rows: int) -> float:
        inputs = {width: x.expand(num_rows, -1).contiguous() for width, x in self._inputs.items()}
        started_at = time.perf_counter()
        for product, width in zip(products, self._widths, strict=True):
            y = product(inputs[width])
        if y.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started_at


def _weights_of(block: Any) -> list[Tensor]:
    """`[out_features, in_features]`; transformers keeps GPT-2's the other way around."""
    layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return [layer.weight.detach().t().contiguous() for layer in layers]
