"""Things that are done in their order, one in each turn of the event loop, so that others' come between them.

Knows order. Knows nothing of what is done.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Made anywhere, used on the event loop. Calls `do` with each item; it must not raise."""

    def __init__(self, do: Callable[[Item], None]) -> None:
        self._do = do
        self._items: deque[Item] = deque()

    def add(self, item: Item) -> None:
        self._items.append(item)
        if len(self._items) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def finish(self) -> None:
        """Do now what is left."""
        while self._items:
            self._do(self._items.popleft())

    def _next(self) -> None:
        if self._items:
            self._do(self._items.popleft())
        if self._items:
            asyncio.get_running_loop().call_soon(self._next)
