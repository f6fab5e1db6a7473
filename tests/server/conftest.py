"""A server around the hand-written engine, on a real port, in a thread of this process."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvloop
from tokenizers import Tokenizer as Backend
from transformers import GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone
from prefix_store.formats import dump
from prefix_store.prefix import BackboneSpec
from prefix_store.store import PrefixStore
from prefix_store.tenants import Scope, Tenant
from server.app import Loaded, create_app
from server.cli import Server, uvicorn_config
from server.engine_messages import BackboneFacts
from server.log import make_logger
from server.services import Services
from server.settings import Settings
from tests.server.fakes import EOS, SHAPE, EchoEngine, EngineThread, Gate

FINGERPRINT = "f" * 64


@dataclass
class Running:
    """A server that answers at `http` and writes its `log`; `on_loop` runs something on its event loop."""

    http: httpx.Client
    engine: EchoEngine
    services: Services
    server: Server
    loop: asyncio.AbstractEventLoop
    port: int
    log: io.StringIO

    def on_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)

    def generate(self, inputs: str, status: int = 200, **parameters: Any) -> Any:
        answer = self.http.post("/generate", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == status, answer.text
        return answer.json()

    def wait_for_open_rows(self, num_rows: int) -> None:
        """Returns when the engine was sent exactly so many rows that have not ended, and no request keeps more room."""
        engine = self.services.engine

        async def are_open() -> bool:
            num_sent = sum(mailbox.num_rows for mailbox in engine._mailboxes.values())
            return num_sent == engine.room.num_rows == num_rows

        self._wait_for(are_open)

    def wait_for_kept_room(self, num_rows: int) -> None:
        """Returns when exactly so many rows are open, or promised to requests that are still being read."""

        async def is_kept() -> bool:
            return self.services.engine.room.num_rows == num_rows

        self._wait_for(is_kept)

    def _wait_for(self, is_so: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Asks between two callbacks of the event loop, never within one."""
        deadline = time.monotonic() + 20
        while not asyncio.run_coroutine_threadsafe(is_so(), self.loop).result(20):
            assert time.monotonic() < deadline, f"room is taken for {self.services.engine.room.num_rows} rows"
            time.sleep(0.002)

    def upload(self, task_id: str, num_virtual_tokens: int = 3, value: float = 0.25) -> dict[str, Any]:
        answer = self.http.put(f"/tasks/{task_id}", content=prefix_file(num_virtual_tokens, value))
        assert answer.status_code in (200, 201), answer.text
        uploaded: dict[str, Any] = answer.json()
        return uploaded


def prefix_file(num_virtual_tokens: int = 3, value: float = 0.25, **metadata: str) -> bytes:
    kv = torch.full((SHAPE.n_layer, 2, num_virtual_tokens, SHAPE.n_head, SHAPE.head_dim), value)
    return dump(kv, metadata)


def loader(backend: Backend, engine: EchoEngine) -> Callable[[Settings], Loaded]:
    spec = BackboneSpec("tiny", SHAPE, FINGERPRINT)

    def load(settings: Settings) -> Loaded:
        store = PrefixStore(settings.store, backbone=spec, registry_url=settings.registry)
        facts = BackboneFacts(spec, backend.to_str(), EOS, "float32", "cpu")
        run = EngineThread(engine)
        return Loaded(facts, run, engine.capacity, store, store.tenants.has_keys())

    return load


@contextmanager
def running(directory: Path | str, backend: Backend, engine: EchoEngine, **settings: Any) -> Iterator[Running]:
    chosen = Settings(store=directory, port=0, **settings)
    log = io.StringIO()
    app = create_app(chosen, loader(backend, engine), make_logger(log))
    started: list[Any] = []
    is_up = threading.Event()

    class AnnouncingServer(Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.extend([app.state.services, asyncio.get_running_loop()])
            is_up.set()

    server = AnnouncingServer(uvicorn_config(app, chosen))

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            serving = asyncio.create_task(server.serve())
            ending = asyncio.create_task(app.state.services.lifecycle.ending.wait())
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
            ending.cancel()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    server.config.host, server.config.port = "127.0.0.1", 0
    thread.start()
    assert is_up.wait(20)
    services, loop = started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            yield Running(http, engine, services, server, loop, port, log)
    finally:
        if isinstance(getattr(engine, "before_step", None), Gate):
            engine.before_step.open()  # also after a test that failed
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def start(tmp_path: Path, byte_tokenizer: Backend) -> Iterator[Callable[..., Running]]:
    """Start a server with these settings, on this engine; it ends with the test."""
    with ExitStack() as stack:
        yield lambda engine=None, **settings: stack.enter_context(
            running(tmp_path / "store", byte_tokenizer, engine or EchoEngine(), **settings)
        )


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> GPT2LMHeadModel:
    """A tiny real one, as transformers has it."""
    return GPT2LMHeadModel.from_pretrained(tiny_model).eval()


@pytest.fixture(scope="module")
def real(
    tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend, model: GPT2LMHeadModel
) -> Iterator[Running]:
    """A server that runs it."""
    engine: Any = Engine(Backbone.from_model(model), max_num_seqs=4)
    with running(tmp_path_factory.mktemp("store"), byte_tokenizer, engine) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Running]:
    """One server for all tests of a file; what a test changes in it has a name of its own."""
    with running(tmp_path_factory.mktemp("store"), byte_tokenizer, EchoEngine()) as server:
        yield server


@dataclass(frozen=True)
class Guarded:
    """A server whose registry holds keys; `keys` has each one's secret by `tenant/scope`."""

    server: Running
    keys: dict[str, str]

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key]}"}

    def ask(self, key: str, method: str, path: str, **options: Any) -> httpx.Response:
        return self.server.http.request(
            method, path, headers={**self.headers(key), **options.pop("headers", {})}, **options
        )


@contextmanager
def guarded(
    directory: Path, backend: Backend, engine: EchoEngine, tenants: tuple[Tenant, ...], **settings: Any
) -> Iterator[Guarded]:
    """A running server with these tenants, each with one key for each scope."""
    store = PrefixStore(directory, backbone=BackboneSpec("tiny", SHAPE, FINGERPRINT))
    keys = {}
    for tenant in tenants:
        store.tenants.add_tenant(tenant)
        for scope in Scope:
            keys[f"{tenant.name}/{scope}"] = store.tenants.create_key(tenant.name, [scope])[1]
    store.close()
    with running(directory, backend, engine, **settings) as server:
        yield Guarded(server, keys)


@pytest.fixture
def start_guarded(tmp_path: Path, byte_tokenizer: Backend) -> Iterator[Callable[..., Guarded]]:
    """Start a server for these tenants; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *tenants, engine=None, **settings: stack.enter_context(
            guarded(tmp_path / "store", byte_tokenizer, engine or EchoEngine(), tenants, **settings)
        )
