"""How many bytes of files are read at once, so that many first uses together do not fill the memory.

Knows bytes and threads. Knows nothing of what the files are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class ReadingRoom:
    """Thread-safe. Whoever came first goes first, so that a large file is not kept waiting by small ones."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._turn = Lock()  # held by the one who waits for room; the others wait for that one
        self._left = Condition()
        self._num_bytes = 0

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Wait for room for a file of so many bytes, and hold it for as long as the block runs.

        A file that is alone always gets in, even one that is larger than that.
        """
        with self._turn, self._left:
            self._left.wait_for(lambda: not self._num_bytes or self._num_bytes + num_bytes <= self._max_bytes)
            self._num_bytes += num_bytes
        try:
            yield
        finally:
            with self._left:
                self._num_bytes -= num_bytes
                self._left.notify()
