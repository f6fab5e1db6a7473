"""Which prefixes the engine has: each goes over once, and stays for as long as any open request has it.

Knows who uses what. Knows nothing of requests.
"""

from collections.abc import Callable, Iterable
from itertools import count

from prefix_store.prefix import Prefix
from server.engine_messages import Drop, Keep


class SentPrefixes:
    def __init__(self, send: Callable[[Keep | Drop], None]) -> None:
        """`send` has told the engine, in order with all else that it is told, when it returns."""
        self._send = send
        self._numbers: dict[Prefix, int] = {}
        self._num_users: dict[Prefix, int] = {}
        self._fresh = count()

    def number_of(self, thing: object) -> int | None:
        """By which the engine knows it; None where it does not."""
        return self._numbers.get(thing) if isinstance(thing, Prefix) else None

    def use(self, prefixes: Iterable[Prefix | None]) -> None:
        for prefix in prefixes:
            if prefix is None:
                continue
            if prefix not in self._numbers:
                number = next(self._fresh)
                self._send(Keep(number, prefix))
                self._numbers[prefix] = number
            self._num_users[prefix] = self._num_users.get(prefix, 0) + 1

    def leave(self, prefixes: Iterable[Prefix | None]) -> None:
        """The engine drops what nobody uses any more."""
        for prefix in prefixes:
            if prefix is None:
                continue
            self._num_users[prefix] -= 1
            if self._num_users[prefix] == 0:
                del self._num_users[prefix]
                self._send(Drop(self._numbers.pop(prefix)))
