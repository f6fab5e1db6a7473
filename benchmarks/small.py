"""An engine of GPT-2 small's shape with random weights, as the benchmarks of the engine alone use it.

Knows nothing of what is measured.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone, float_dtype_of
from batching.types import Request, StepOutput
from benchmarks.arguments import device_and_dtype

MAX_MODEL_LEN = 256


@dataclass(frozen=True, slots=True)
class Small:
    """`model` is transformers', with the same weights as the engine and in its dtype, of int8 the one beside it."""

    engine: Engine
    model: GPT2LMHeadModel
    dtype: str


def seconds_of(engine: Engine, requests: Sequence[Request]) -> float:
    """Run them to their ends, which are their `max_new_tokens`: from submission to the last token of all rows."""
    started_at = time.perf_counter()
    for request in requests:
        engine.add_request(request)
    num_tokens = 0
    while engine.has_work:
        num_tokens += sum(len(output.new_token_ids) for output in engine.step() if isinstance(output, StepOutput))
    seconds = time.perf_counter() - started_at
    assert num_tokens == sum(request.sampling_params.max_new_tokens for request in requests), num_tokens
    return seconds


def make_small(args: argparse.Namespace, num_slots: int, **options: Any) -> Small:
    """By the command line's `device` and `dtype`; `options` are further ones of the engine's."""
    device, dtype = device_and_dtype(args)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    backbone = Backbone.from_model(model, device=str(device), dtype=dtype)
    engine = Engine(backbone, max_num_seqs=num_slots, max_model_len=MAX_MODEL_LEN, **options)
    return Small(engine, model.to(device, float_dtype_of(dtype, device)), dtype)
