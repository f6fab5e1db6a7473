"""Writes the records of data-to-text tasks as the texts that a prefix is trained on.

Knows slots, triples and dialogue acts. Knows nothing of files or tokens.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

Field = tuple[str, str]  # key, value
SLOT = r"(?:([^,\[\]]*[^\s,\[\]]\s*)\[([^\[\]]*)\]\s*)"  # of a meaning representation: name[The Vaults]


def render(fields: Iterable[Field], syntax: str = "{key} : {value}", joint: str = " | ") -> str:
    """Write fields as a record, by default `name : The Vaults | eatType : pub`; an empty value leaves the key alone."""
    return joint.join(syntax.format(key=key, value=value) if value else key for key, value in fields)


def slot_fields(mr: str) -> list[Field]:
    """The fields of an E2E meaning representation, `name[The Vaults], eatType[pub]`. Raises ValueError for another."""
    if not re.fullmatch(rf"{SLOT}(,{SLOT})*[,\s]*", mr):
        raise ValueError(f"expected slot[value], slot[value] …, found {mr!r}")
    return [(key.strip(), value) for key, value in re.findall(SLOT, mr)]


def dialogue_fields(acts: Sequence[dict[str, Any]], with_act: bool = True) -> list[Field]:
    """The fields of Schema-Guided Dialogue's acts: `OFFER event_name [Yes]` -> (`offer event name`, `Yes`)."""
    return [(_act_key(act, with_act), ", ".join(act["values"])) for act in acts]


def _act_key(act: dict[str, Any], with_act: bool) -> str:
    slot = act["slot"].replace("_", " ")
    name = act["act"].replace("_", " ").lower()
    return f"{name} {slot}".strip() if with_act or not slot or not act["values"] else slot


def render_triples(triples: Iterable[Iterable[str]]) -> str:
    """`s : p : o | s : p : o`, the authors' form for WebNLG and DART."""
    return " | ".join(" : ".join(part.strip() for part in triple) for triple in triples)
