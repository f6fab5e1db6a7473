"""A connection for each request in flight, kept open for the next one.

Knows httpx's clients. Knows nothing of calls or answers.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import anyio
import httpx

from clients.errors import ConnectionFailed

MAX_IDLE = 128
IDLE_SECONDS = 4.0  # less than a server's, of which some close after 5, and what is sent just then is lost


def is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Connections:
    """Each connection is an httpx client of its own, which is asked for one thing at a time.

    One httpx client for all would look through its whole pool at every request, and close what it holds beyond twenty
    idle ones: with 64 requests in flight nearly every one paid for a new connection. To be used in one event loop.
    """

    def __init__(
        self,
        base_url: httpx.URL,
        auth: httpx.Auth | None,
        headers: dict[str, str],
        timeout: httpx.Timeout,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._base_url = base_url
        self._auth = auth
        self._headers = headers
        self._timeout = timeout
        self._transport = transport
        self._certificates: ssl.SSLContext | None = None
        self._all: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """The connection that was used last, for this block's requests alone. Of those of a burst `MAX_IDLE` stay, but
        where a caller's own transport carries them all, which closing one of them would close."""
        connection = self._idle.pop() if self._idle else self._open()
        try:
            yield connection
        finally:
            if self._transport is not None or len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
            else:
                self._all.remove(connection)
                with anyio.CancelScope(shield=True):
                    await connection.aclose()

    def _open(self) -> httpx.AsyncClient:
        """Raises `ConnectionFailed` where the environment names certificates or a proxy that cannot be used."""
        is_secure = self._base_url.scheme == "https"
        try:
            if is_secure and self._certificates is None:
                self._certificates = httpx.create_ssl_context()  # made once: it reads a file
            connection = httpx.AsyncClient(
                base_url=self._base_url,
                auth=self._auth,
                headers=self._headers,
                timeout=self._timeout,
                transport=self._transport,
                verify=self._certificates or False,  # False: of http nothing is to be verified
                limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
                trust_env=not is_this_machine(self._base_url.host),  # no proxy leads back here
            )
        except (ImportError, ValueError) as error:
            reason = f"the proxy that the environment names cannot be used: {error}"
            raise ConnectionFailed(str(self._base_url), reason) from error
        except OSError as error:
            reason = (
                f"the certificates that the environment names (SSL_CERT_FILE, SSL_CERT_DIR) cannot be read: {error}"
            )
            raise ConnectionFailed(str(self._base_url), reason) from error
        self._all.append(connection)
        return connection

    async def close(self) -> None:
        for connection in list(self._all):
            await connection.aclose()
