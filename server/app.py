"""Builds the server: loads the backbone, opens the store, starts the engine, and joins the routes to them.

The one place where everything is put together. `create_app` is what any ASGI server can run.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from batching.engine import Engine
from batching.gpt2 import load_backbone
from prefix_store.errors import StoreError
from prefix_store.prefix import BackboneSpec
from prefix_store.store import PrefixStore
from server.async_engine import AsyncEngine, EngineLike
from server.errors import ERRORS
from server.http import error_response, request_id_of
from server.lifecycle import Lifecycle
from server.log import make_logger
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.openapi import document
from server.routes import generate, operations, tasks
from server.services import BackboneFacts, Services
from server.settings import Settings
from server.text import Tokenizer


class ServerStartError(Exception):
    """Why the server refuses to start, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What takes long to make: the model on its device and the files on the disk."""

    backbone: BackboneFacts
    engine: EngineLike
    tokenizer: Tokenizer
    store: PrefixStore


class Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


def load(settings: Settings) -> Loaded:
    """Load what the settings name. Raises `ServerStartError`."""
    if settings.model is None:
        raise ServerStartError("no model: give --model, or set POLYPREFIX_MODEL")
    try:
        return _load(settings, settings.model)
    except (
        ValueError,
        OSError,
        RuntimeError,
        StoreError,
    ) as error:  # what a wrong model, device, number or disk raises
        raise ServerStartError(str(error)) from error


def _load(settings: Settings, model: str) -> Loaded:
    backbone = load_backbone(model, settings.device, settings.dtype)
    tokenizer = Tokenizer.load(model, backbone.vocab_size)
    engine = Engine(backbone, settings.max_num_seqs, settings.max_model_len)
    spec = BackboneSpec(backbone.name, backbone.shape, backbone.fingerprint)
    facts = BackboneFacts(spec, backbone.eos_token_id, backbone.dtype_name, backbone.device_name)
    store = PrefixStore(settings.store, backbone=spec, cache_bytes=settings.prefix_cache_bytes)
    return Loaded(facts, engine, tokenizer, store)


def create_app(settings: Settings, load: Callable[[Settings], Loaded] = load) -> FastAPI:
    """The ASGI application. Its lifespan loads the model and starts the engine, and ends both."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = _connect(settings, await asyncio.to_thread(load, settings))
        app.state.services = services
        services.engine.start()
        services.log.info("ready", backbone=services.backbone.name, device=services.backbone.device_name)
        try:
            yield
        finally:
            await services.engine.stop()
            await asyncio.to_thread(services.store.close)

    app = Application(
        title="Polyprefix",
        version=version("polyprefix"),
        description="One frozen GPT-2, many prefix-tuned tasks",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.add_middleware(RequestMiddleware)
    for error_class in (*ERRORS, HTTPException):
        app.add_exception_handler(error_class, _answer_error)
    for router in (generate.router, tasks.router, operations.router):
        app.include_router(router)
    return app


def _connect(settings: Settings, loaded: Loaded) -> Services:
    log = make_logger()
    lifecycle = Lifecycle(log, settings.drain_notice, settings.drain_timeout)
    metrics = Metrics(loaded.store)
    engine = AsyncEngine(
        loaded.engine,
        max_open_rows=loaded.engine.max_num_seqs * (1 + settings.max_queued_per_slot),
        stall_timeout=settings.engine_stall_timeout,
        on_pulse=metrics.observe_pulse,
        on_death=lifecycle.engine_died,
    )
    return Services(
        settings=settings,
        backbone=loaded.backbone,
        engine=engine,
        store=loaded.store,
        tokenizer=loaded.tokenizer,
        metrics=metrics,
        lifecycle=lifecycle,
        log=log,
    )


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(error, request_id_of(request))
