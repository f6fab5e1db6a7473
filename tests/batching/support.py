"""Tiny random backbones, prefixes and requests, and a way to run an engine to its end."""

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.types import Compiled, MixedPrefix, Request, SamplingParams, StepOutput
from prefix_store.prefix import BackboneShape, Prefix

_ids = count()


def make_model(
    n_layer: int = 2, n_head: int = 4, head_dim: int = 8, vocab_size: int = 97, seed: int = 0, **config: object
) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_head * head_dim, n_positions=256, vocab_size=vocab_size,
            bos_token_id=vocab_size - 1, eos_token_id=vocab_size - 1, initializer_range=0.3, **config,
        )
    )  # fmt: skip
    return model.eval()


def make_prefix(shape: BackboneShape, num_virtual_tokens: int, seed: int = 0) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    size = (shape.n_layer, 2, num_virtual_tokens, shape.n_head, shape.head_dim)
    return Prefix(torch.randn(size, generator=generator), revision=f"{seed}-{num_virtual_tokens}", kind="prefix")


def make_prompt(num_tokens: int, vocab_size: int = 97, seed: int = 0) -> tuple[int, ...]:
    chooser = random.Random(seed)
    return tuple(chooser.randrange(vocab_size - 1) for _ in range(num_tokens))


def ask(prompt: Iterable[int], prefix: Prefix | None = None, **params: object) -> Request:
    return Request(f"request-{next(_ids)}", "default", tuple(prompt), prefix, SamplingParams(**params))  # type: ignore[arg-type]


def ask_mix(prompt: Iterable[int], mix: Iterable[tuple[Prefix | None, float]], **params: object) -> Request:
    return replace(ask(prompt, **params), mix=tuple(MixedPrefix(prefix, weight) for prefix, weight in mix))


def make_engine(model: GPT2LMHeadModel, max_num_seqs: int = 8, dtype: str = "float32") -> Engine:
    """A request's constraint begins its rows itself."""
    backbone = Backbone.from_model(model, dtype=dtype)
    return Engine(backbone, max_num_seqs, constrain=lambda each, vocab_size: each.begin(vocab_size))


def run(engine: Engine, requests: Iterable[Request], arrivals: dict[int, int] | None = None) -> list[list[StepOutput]]:
    """Run all requests to their ends; request i arrives before step `arrivals[i]`. Returns each one's outputs."""
    requests = list(requests)
    outputs: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    waiting = sorted(range(len(requests)), key=lambda i: (arrivals or {}).get(i, 0))
    step = 0
    while waiting or engine.has_work:
        while waiting and (arrivals or {}).get(waiting[0], 0) <= step:
            engine.add_request(requests[waiting.pop(0)])
        for output in engine.step():
            assert not isinstance(output, Compiled)
            outputs[output.request_id].append(output)
        step += 1
    return [outputs[request.request_id] for request in requests]


def tokens(outputs: list[StepOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.new_token_ids]
