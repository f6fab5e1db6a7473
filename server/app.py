"""Builds the server: loads the backbone, opens the store, starts the engine, and joins the routes to them.

The one place where everything is put together. `create_app` is what any ASGI server can run.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from structlog.typing import FilteringBoundLogger

from batching.checks import Capacity
from prefix_store.errors import StoreError
from prefix_store.shared_memory import SharedMemory
from prefix_store.store import PrefixStore
from server.access import LOCAL, Access, is_loopback
from server.account_metrics import AccountMetrics
from server.administration import Administration
from server.admission import Admission
from server.async_engine import AsyncEngine, EngineRun
from server.audit import AuditLog
from server.bookkeeping import books_kept
from server.engine_messages import Allocate, BackboneFacts, LoadBackbone, Pulse
from server.engine_process import EngineProcess
from server.failure_watch import FailureWatch
from server.file_room import FileRoom
from server.first_key import write_first_key
from server.grammars import Grammars
from server.heap import give_back_large_blocks
from server.http import answer_errors
from server.inspection import store_inspected, tell_all
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.live import Live
from server.log import make_logger
from server.metrics import Metrics
from server.middleware import RequestMiddleware
from server.openapi import document
from server.routes import admin, generate, live, openai, operations, page, score, tasks
from server.services import Loads, Services
from server.settings import Settings, unknown_variables
from server.text import Tokenizer

ROUTERS = (
    generate.router,
    openai.router,
    score.router,
    tasks.router,
    operations.router,
    live.router,
    admin.router,
    page.router,
)


class ServerStartError(Exception):
    """Why the server refuses to start, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What takes long to make: the model on its device and the files on the disk; and whether there are API keys."""

    backbone: BackboneFacts
    engine: EngineRun
    capacity: Capacity
    store: PrefixStore
    has_keys: bool


class Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


def load(settings: Settings) -> Loaded:
    """Load what the settings name. Raises `ServerStartError`."""
    try:
        return _load(settings, settings.model or str(files("polyprefix") / "pocket"))
    except (ValueError, OSError, RuntimeError, StoreError) as error:  # a wrong model, device, number or disk
        raise ServerStartError(str(error)) from error


def _load(settings: Settings, model: str) -> Loaded:
    give_back_large_blocks()  # an upload's body, and what it is compiled to
    with contextlib.ExitStack() as stack:
        memory = SharedMemory() if sys.platform == "linux" else None
        engine = EngineProcess(memory)
        stack.callback(engine.end)
        backbone = engine.load(LoadBackbone(model, settings.device, settings.dtype, settings.deterministic))
        store = PrefixStore(
            settings.store,
            backbone=backbone.spec,
            cache_bytes=settings.prefix_cache_bytes,
            registry_url=settings.registry,
            memory=memory,
        )
        stack.callback(store.close)
        if settings.first_key_file is not None and not settings.no_auth and not store.tenants.has_keys():
            write_first_key(store.tenants, settings.first_key_file)
        has_keys = store.tenants.has_keys()
        capacity = engine.allocate(Allocate(settings.max_num_seqs, settings.max_model_len, has_reserve=has_keys))
        stack.pop_all()
    return Loaded(backbone, engine, capacity, store, has_keys)


def create_app(
    settings: Settings, load: Callable[[Settings], Loaded] = load, log: FilteringBoundLogger | None = None
) -> FastAPI:
    """The ASGI application. Its lifespan loads the model and starts the engine, and ends both.

    `log` is by default a logger on the standard error stream.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = await asyncio.to_thread(load, settings)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, loaded.store.close)
            stack.push_async_callback(asyncio.to_thread, loaded.engine.end)
            check_exposure(settings, loaded.has_keys)
            services = app.state.services = _connect(settings, loaded, log or make_logger())
            stack.callback(services.loads.close)
            audit = AuditLog.of(settings.store, services.log)
            tell = partial(tell_all, services.log, services.metrics.num_damaged)
            app.state.administration = Administration(loaded.store, audit, tell)
            app.state.access = Access(loaded.store.tenants, None if loaded.has_keys else LOCAL)
            await stack.enter_async_context(books_kept(services.store, services.log))
            await stack.enter_async_context(store_inspected(services.store, services.log, services.metrics.num_damaged))
            stack.push_async_callback(services.grammars.close)
            await services.engine.start()
            stack.push_async_callback(services.engine.stop)
            if settings.metrics_port is not None:
                port = stack.enter_context(services.metrics.served(settings.host, settings.metrics_port))
                services.log.info("metrics", port=port)
            services.log.info("ready", backbone=services.backbone.name, device=services.backbone.device_name)
            if services.backbone.is_slow:
                services.log.warning("slow", what="the package was built without a C++ compiler, so torch does all")
            if unknown := unknown_variables():
                services.log.warning("unknown_settings", names=unknown, what="these environment variables set nothing")
            if settings.no_auth:
                services.log.warning("no_auth", what="whoever reaches this server may use and change everything on it")
            yield

    app = Application(
        title="Polyprefix",
        version=version("polyprefix"),
        description="One frozen GPT-2, many prefix-tuned tasks",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        telemetry={"logs": False},  # the log is ours, and never holds what a caller sent
    )
    app.state.admission = Admission(generate.router, openai.router, score.router)
    app.add_middleware(RequestMiddleware, admission=app.state.admission)
    answer_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def check_exposure(settings: Settings, has_keys: bool) -> None:
    """Refuse to serve the network without keys, unless told so in words, and keys without asking for them."""
    if settings.no_auth and has_keys:
        raise ServerStartError("the registry holds API keys, and --no-auth would not ask for them: leave --no-auth out")
    if not (has_keys or settings.no_auth or is_loopback(settings.host)):
        raise ServerStartError(
            f"there is no API key, so whoever reaches {settings.host} could use and change everything: make a key "
            "(polyprefix admin key create), listen on 127.0.0.1, or say --no-auth"
        )


def _connect(settings: Settings, loaded: Loaded, log: FilteringBoundLogger) -> Services:
    lifecycle = Lifecycle(log, settings.drain_notice, settings.drain_timeout)
    metrics, recorder = Metrics(loaded.store), Live(loaded.capacity.max_num_seqs)
    accounts = AccountMetrics(metrics.registry, settings.metrics_by_tenant, settings.metrics_max_tasks)

    def on_pulse(pulse: Pulse) -> None:
        metrics.observe_pulse(pulse)
        recorder.observe_pulse(pulse)
        accounts.observe_waiting(recorder.num_waiting)

    engine = AsyncEngine(
        loaded.engine,
        loaded.capacity,
        max_open_rows=loaded.capacity.max_num_seqs * (1 + settings.max_queued_per_slot),
        stall_timeout=settings.engine_stall_timeout,
        on_pulse=on_pulse,
        on_death=lifecycle.engine_died,
    )
    metrics.watch(engine)
    return Services(
        settings=settings,
        backbone=loaded.backbone,
        engine=engine,
        store=loaded.store,
        loads=Loads(loaded.store, max_wait=settings.queue_timeout),
        tokenizer=Tokenizer(loaded.backbone.tokenizer),
        grammars=Grammars(loaded.backbone.tokenizer, loaded.backbone.eos_token_id, max_wait=settings.queue_timeout),
        metrics=metrics,
        accounts=accounts,
        live=recorder,
        lifecycle=lifecycle,
        limits=Limits(),
        file_room=FileRoom(settings.max_open_upload_bytes),
        failures=FailureWatch(),
        log=log,
    )
