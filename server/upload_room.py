"""How many bytes of uploads are under way, everybody's together, so that they cannot fill the memory.

Knows bytes. Knows nothing of tenants or of what is uploaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Unavailable


class UploadRoom:
    """Used on the event loop. An upload that is alone always gets in."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Hold room for a body of so many bytes for as long as the block runs. Raises `Unavailable` where it lacks."""
        if self.num_bytes and self.num_bytes + num_bytes > self._max_bytes:
            raise Unavailable(
                f"uploads of {self.num_bytes} bytes are under way, and at most {self._max_bytes} may be; try again"
            )
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes
