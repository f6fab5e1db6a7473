"""Things that are done in their order, a part of them in each turn of the event loop, so that others' come between.

Knows order. Knows nothing of what is done.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

PARTS = 8  # of what waits, one in each turn: where turns are long, more waits and more is done in each

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Made anywhere, used on the event loop. Calls `do` with each item."""

    def __init__(self, do: Callable[[Item], None]) -> None:
        self._do = do
        self._items: deque[Item] = deque()
        self._has_turn = False

    def add(self, item: Item) -> None:
        self._items.append(item)
        self._take_turn()

    def finish(self) -> None:
        """Do now what is left."""
        self._do_some(len(self._items))

    def _take_turn(self) -> None:
        if self._items and not self._has_turn:
            self._has_turn = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._has_turn = False
        try:
            self._do_some(-(-len(self._items) // PARTS))
        finally:
            self._take_turn()

    def _do_some(self, number: int) -> None:
        for _ in range(number):
            self._do(self._items.popleft())
