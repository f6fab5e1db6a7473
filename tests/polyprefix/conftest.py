"""A real server in a child process, on a tiny random GPT-2 with room for the demo's texts as bytes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from tests.conftest import END_OF_TEXT


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, byte_tokenizer, num_positions=256)
    return folder


def save_model(folder: Path, byte_tokenizer: Tokenizer, num_positions: int) -> None:
    end = byte_tokenizer.token_to_id(END_OF_TEXT)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": num_positions}
    config = GPT2Config(**shape, vocab_size=257, initializer_range=0.5, bos_token_id=end, eos_token_id=end)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, eos_token=END_OF_TEXT).save_pretrained(folder)


@pytest.fixture(scope="session")
def server_url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), find_free_port()
    options = ["--model", str(tiny_model), "--store", str(folder / "store"), "--port", str(port), "--dtype", "float32"]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with child_server(options, log) as process, Client(url) as client:
        wait_until_ready(client, process, log)
        yield url


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
