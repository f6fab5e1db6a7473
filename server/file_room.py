"""How many bytes of files come in and go out, so that they cannot fill the memory, and nobody can keep others out.

Knows tenants and bytes. Knows nothing of what the files are.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Unavailable


class FileRoom:
    """Used on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes: Counter[str] = Counter()  # by tenant; none is zero

    @property
    def num_bytes(self) -> int:
        return self._bytes.total()

    @contextmanager
    def taken(self, tenant: str, num_bytes: int) -> Iterator[None]:
        """Hold room for a file of so many bytes for as long as the block runs. Raises `Unavailable` where it lacks.

        A tenant may have no more than it leaves free (the dynamic threshold of Choudhury and Hahne, "Dynamic queue
        length thresholds for shared-memory packet switches", 1998): a single one half, and there is always some left
        for the next. A file that is alone always gets in, even one that is larger than that.
        """
        num_free = self._max_bytes - self.num_bytes - num_bytes
        if self.num_bytes and self._bytes[tenant] + num_bytes > num_free:
            raise Unavailable(
                f"files of {self.num_bytes} bytes are under way, {self._bytes[tenant]} of them this tenant's; "
                f"there is room for {self._max_bytes}, of which a tenant leaves as much as it has; try again"
            )
        self._bytes[tenant] += num_bytes
        try:
            yield
        finally:
            self._bytes[tenant] -= num_bytes
            if not self._bytes[tenant]:
                del self._bytes[tenant]
