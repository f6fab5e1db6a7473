"""What is known of the latest grammars, each tenant's apart: how long one takes must not tell what others asked for.

Knows whose a grammar is. Knows nothing of what is kept of it.
"""

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

from server.grammar_compiler import Grammar

MAX_KEPT = 64
MAX_KEPT_OF_TENANT = 8

Value = TypeVar("Value")


class OwnGrammar(NamedTuple):
    """A grammar, and the tenant that asks for it: the `constraint` of a request."""

    tenant: str
    grammar: Grammar


class KeptGrammars(Generic[Value]):
    def __init__(self) -> None:
        self._kept: OrderedDict[OwnGrammar, Value] = OrderedDict()

    def __contains__(self, own: object) -> bool:
        return own in self._kept

    def get(self, own: OwnGrammar) -> Value:
        """Raises `KeyError`."""
        self._kept.move_to_end(own)
        return self._kept[own]

    def keep(self, own: OwnGrammar, value: Value) -> None:
        """As the latest; beyond the limits the tenant's own oldest is forgotten, then everybody's."""
        self._kept[own] = value
        of_tenant = [each for each in self._kept if each.tenant == own.tenant]
        if len(of_tenant) > MAX_KEPT_OF_TENANT:
            del self._kept[of_tenant[0]]
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
