"""`polyprefix serve`: runs the server in this process until a signal or a dead engine ends it.

Knows uvicorn and the command line. Knows nothing of routes.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

import typer
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import ValidationError

from server.app import Loaded, ServerStartError, create_app, load
from server.errors import Unavailable
from server.lifecycle import end_at_once
from server.middleware import RefusalAtOnce
from server.protocol import DeadlineProtocol
from server.services import Services
from server.settings import Settings

ENDING_GRACE = 5  # seconds for the last answers to be written, after every request has ended
# A collection of the second generation looks through all that the open requests hold, 25 ms in which nobody is refused
# or answered; one of the third takes 80 ms. By CPython's own (700, 10, 10) the former came every third second at ten
# times the load, for nothing: a request leaves no garbage.
GC_THRESHOLDS = (700, 100, 20)


class Server(uvicorn.Server):
    """uvicorn, but what signals do is the lifecycle's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    model: Annotated[str | None, typer.Option(help="Checkpoint directory or hub id; default: the embedded one")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Where prefixes are kept: a directory, or s3://…, gs://…, az://…; default: ./store"),
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="The database that goes with a bucket: postgresql+psycopg://…")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one and prints it; default: 8000")] = None,
    no_auth: Annotated[
        bool | None, typer.Option("--no-auth", help="Without any key, serve whoever reaches an address of the network")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Give the metrics a port of their own, without keys")] = None,
    allowed_hosts: Annotated[str | None, typer.Option(help="Names to answer to, with commas; default: any")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda:0 …; default: auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16, int8; default: auto")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="The same bits for a row, whatever rows run beside it")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Rows of a batch; default: what fits, up to 64")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Context length; default: the backbone's")] = None,
    prefix_cache_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for prefixes: bytes, or with a unit; default: 1GiB")
    ] = None,
) -> None:
    """Serve many prefix-tuned tasks on one frozen GPT-2. Every option can also be set as POLYPREFIX_… ."""
    given = {name: value for name, value in locals().items() if value is not None}
    signal.signal(signal.SIGTERM, end_at_once)  # until there is something to drain
    try:
        settings = Settings(**given)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_code = runner.run(run(settings))
            if exit_code != 0:
                # The engine is dead: a thread, or the device itself, may never let an orderly exit end.
                os._exit(exit_code)
    except (ServerStartError, ValidationError, OSError) as error:
        typer.echo(f"polyprefix serve: {told(error)}", err=True)
        sys.exit(1)


def told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems)


async def run(settings: Settings, load: Callable[[Settings], Loaded] = load) -> int:
    """Serve until the end; returns the process's exit status."""
    app = create_app(settings, load)
    with bind(settings.host, settings.port) as listener:
        async with app.router.lifespan_context(app):
            services: Services = app.state.services
            # What was imported and loaded stays: looking through it again, now and then, held everybody up for 0.25 s.
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            services.lifecycle.listen_to_signals(lambda: _give_up(services))
            await _serve_until_ending(Server(uvicorn_config(app, settings)), listener, services)
        return services.lifecycle.exit_code


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """HTTP/1.1 with limits and deadlines. The lifespan is ours, so that why it failed is told in one line."""
    return uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]
            DeadlineProtocol,
            header_timeout=settings.header_timeout,
            reader_timeout=settings.reader_stall_timeout,
            refuse=RefusalAtOnce(app, app.state.admission),
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",  # what clients send wrong is no news
        server_header=False,
        timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]  # asyncio takes any number of seconds
        timeout_graceful_shutdown=int(settings.drain_timeout) + ENDING_GRACE,
    )


async def _serve_until_ending(server: Server, listener: socket.socket, services: Services) -> None:
    listener.listen()  # before the address is told: who connects at once waits, and is not refused
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ending = asyncio.create_task(services.lifecycle.ending.wait())
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    services.log.info("listening", url=url)
    typer.echo(url)
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    ending.cancel()


def _give_up(services: Services) -> None:
    services.engine.fail_all(Unavailable("the server is shutting down and could not wait longer"))


def bind(host: str, port: int) -> socket.socket:
    """Bound before the model is loaded, so that a taken port is told at once; nobody listens until it can answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio, unlike uvloop, sets TCP_NODELAY only where the protocol is named; without it each body waits 40 ms for
    # the head's ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}") from error
    return listener


if __name__ == "__main__":
    typer.run(serve)
