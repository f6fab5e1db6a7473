"""The bare matrix products of a decode step: what no engine can do without.

All 48 of GPT-2 small's blocks and the head, each over weights of its own, without bias, activation or anything between;
plain, and over weights packed for oneDNN where there is packing. Knows nothing of an engine.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from batching.linear import PackedLinear, make_linear

Product = Callable[[Tensor], Tensor]


class Products:
    def __init__(self, model: GPT2LMHeadModel) -> None:
        weights = [weight for block in model.transformer.h for weight in _weights_of(block)]
        weights.append(model.lm_head.weight)
        self._ways: list[list[Product]] = [[partial(F.linear, weight=weight) for weight in weights]]
        if isinstance(make_linear(weights[0], None), PackedLinear):
            self._ways.append([PackedLinear(weight, None) for weight in weights])
        self._inputs = {weight.shape[1]: torch.randn(1, weight.shape[1]).to(weight) for weight in weights}
        self._widths = [weight.shape[1] for weight in weights]

    @torch.inference_mode()
    def seconds(self, num_rows: int) -> float:
        """All of them once, one after another, on `num_rows` rows: by the faster way."""
        inputs = {width: x.expand(num_rows, -1).contiguous() for width, x in self._inputs.items()}
        return min(_seconds(way, [inputs[width] for width in self._widths]) for way in self._ways)


def _weights_of(block: Any) -> list[Tensor]:
    """`[out_features, in_features]`; transformers keeps GPT-2's the other way around."""
    layers = (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
    return [layer.weight.detach().t().contiguous() for layer in layers]


def _seconds(products: list[Product], inputs: list[Tensor]) -> float:
    started_at = time.perf_counter()
    for product, x in zip(products, inputs, strict=True):
        product(x)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_at
