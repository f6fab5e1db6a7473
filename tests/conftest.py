"""What tests of several parts need: one thread, and a tiny random GPT-2 with its tokenizer on the disk."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

torch.set_num_threads(1)

END_OF_TEXT = "<|endoftext|>"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell what schemathesis makes of one test apart: pytest 9.2 leaves the operation out of their ids, and xdist runs
    what has one id once."""
    for item in items:
        operation = getattr(item, "operation_label", None)
        if operation is not None and "[" not in item.nodeid:
            item._id = dataclasses.replace(item._id, params=operation)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, with the byte: those that print stand for themselves."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE without a single merge: a token's id is its byte, and the end-of-text token comes last (256)."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> Path:
    """A directory with a random GPT-2 of two layers, 128 positions and 257 tokens, and the byte tokenizer."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    eos = byte_tokenizer.token_to_id(END_OF_TEXT)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257,
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=eos,
        eos_token_id=eos,
        initializer_range=0.3,  # with the usual 0.02 a random model repeats its last token
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, eos_token=END_OF_TEXT).save_pretrained(directory)
    return directory
