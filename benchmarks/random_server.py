"""A real server in a child process, on GPT-2 small's shape with random weights or on a model that is given.

Knows how a model and prefixes come to a server. Knows nothing of what is then asked.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.embedded_server import free_port
from clients.client import Client
from polyprefix.child_server import child_server, wait_until_ready
from polyprefix.demo_tasks import POCKET
from prefix_store.prefix import BackboneShape, Prefix


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server and an engine beside it have in common."""

    model: Path
    device: str
    dtype: str
    max_num_seqs: int
    max_model_len: int

    @property
    def options(self) -> list[str]:
        """On `polyprefix serve`'s command line."""
        options = ["--model", str(self.model), "--device", self.device, "--dtype", self.dtype]
        return [*options, "--max-num-seqs", str(self.max_num_seqs), "--max-model-len", str(self.max_model_len)]


@contextmanager
def random_model() -> Iterator[Path]:
    """A folder with GPT-2 small's shape, and the embedded model's tokenizer, which has fewer tokens."""
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as folder:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        for file in POCKET.glob("tokenizer*.json"):
            shutil.copy(file, folder)
        yield Path(folder)


def random_prefixes(shape: BackboneShape, num_virtual_tokens: int, task_ids: tuple[str, ...]) -> dict[str, Prefix]:
    size = (shape.n_layer, 2, num_virtual_tokens, shape.n_head, shape.head_dim)
    return {
        task_id: Prefix(torch.randn(size, generator=torch.Generator().manual_seed(i)), revision=task_id, kind="prefix")
        for i, task_id in enumerate(task_ids)
    }


@contextmanager
def serving(settings: ServerSettings, prefixes: Mapping[str, Prefix]) -> Iterator[str]:
    """The address of a server that has these tasks."""
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as folder:
        port, log = free_port(), Path(folder) / "server.log"
        url = f"http://127.0.0.1:{port}"
        options = [*settings.options, "--store", f"{folder}/store", "--port", str(port)]
        with child_server(options, log) as process, Client(url) as client:
            wait_until_ready(client, process, log)
            for task_id, prefix in prefixes.items():
                client.upload(task_id, save({"past_key_values": prefix.past_key_values}, {"format": "polyprefix/1"}))
            yield url
