"""A 2-layer, 32-wide random GPT-2 with weights large enough to matter, and a way to write random pairs."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.backbone import FrozenBackbone, load_backbone
from training.settings import Settings, make_settings

WORDS = ["red", "green", "blue", "small", "cup", "plate", "lamp", "book", "is", "a", "the", "and", "on"]


def make_model(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=2, n_head=4, n_embd=32, n_positions=128, vocab_size=257, bos_token_id=256, eos_token_id=256,
        initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(checkpoint: Path) -> FrozenBackbone:
    return load_backbone(checkpoint, device="cpu", precision="float32")


def quick(**given: Any) -> Settings:
    """Settings that learn something in a few steps."""
    return make_settings(None, {"num_virtual_tokens": 3, "mlp_width": 16, "learning_rate": 3e-3} | given)


Write = Callable[..., Path]


@pytest.fixture
def write_pairs(tmp_path: Path) -> Write:
    """Writes random pairs as JSON lines: `write_pairs("train.jsonl", 20, seed=1)`."""

    def write(name: str, num_pairs: int, seed: int = 0) -> Path:
        chooser = random.Random(seed)
        lines = [
            {"input": " ".join(chooser.choices(WORDS, k=2)), "target": " ".join(chooser.choices(WORDS, k=4))}
            for _ in range(num_pairs)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write
