"""The server as an application of Ray Serve: replicas that share a bucket and a database.

    serve run server.ray_serve:app store=s3://bucket/path registry=postgresql+psycopg://user@host/database

Knows Ray, and how a replica begins, is found ill and ends. Knows nothing of HTTP: a replica is all that `create_app`
makes.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from server.app import ServerStartError, create_app
from server.services import Services
from server.settings import Settings

EVERY_ADDRESS = "0.0.0.0"  # Ray's proxies reach replicas over the network, and whoever else is on it does, too
# Who may wait and who is refused is decided by our own admission, which tells when to come again; Ray's 503 does not.
MAX_ONGOING_REQUESTS = 4096
HEALTH_CHECK_PERIOD = 5  # seconds
ENDING_GRACE = 35  # seconds: Ray's proxies forget a replica for 30 before it refuses connections


@serve.ingress()
class Replica:
    """One process with its engine's process beside it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._settings)
        return self._app

    async def check_health(self) -> None:
        """Raises where the engine has died or stands still: Ray then replaces the replica."""
        services: Services = self._app.state.services
        if services.engine.failure is not None:
            raise RuntimeError(services.engine.failure)


def app(args: dict[str, Any]) -> Application:
    """The application, by fields of `Settings`; what is not given comes from the environment, as POLYPREFIX_… .

    Raises `ServerStartError`, `ValidationError`.
    """
    settings = Settings(**{"host": EVERY_ADDRESS, **args})
    if not isinstance(settings.store, str):
        raise ServerStartError(f"replicas share no directory, as {settings.store} is: store=s3://…, gs://… or az://…")
    return serve.deployment(
        Replica,
        name="Polyprefix",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD,
        # No request lasts longer, so nothing that has begun is cut off when a replica is replaced.
        graceful_shutdown_timeout_s=settings.request_timeout + ENDING_GRACE,
    ).bind(settings)
