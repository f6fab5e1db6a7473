"""Until something that was started answers."""

import contextlib
import time

import httpx

READY_SECONDS = 120


def wait_until_ready(http: httpx.Client, path: str = "/ready") -> None:
    """Returns when `path` is answered with a 200."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if http.get(path).is_success:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{http.base_url} is not ready")
