"""Makes API keys and hashes them.

Knows a key's form, `pp_<8 visible characters>_<64 hexadecimal digits>`. Knows nothing of tenants or tables.
"""

import hashlib
import re
import secrets
import string
from dataclasses import dataclass

_VISIBLE = string.ascii_lowercase + string.digits
_FORM = re.compile(r"pp_([a-z0-9]{8})_[0-9a-f]{64}")
# What is looked up for a text that is no key: no key has it, so that the look-up takes its time and finds nothing.
_NOBODY = "--------"


@dataclass(frozen=True, slots=True)
class NewKey:
    """`secret` is the whole key as its owner sends it, shown once; `key_id` its visible part, by which it is found."""

    key_id: str
    secret: str


def new_key() -> NewKey:
    """A key of 256 random bits from the operating system."""
    key_id = "".join(secrets.choice(_VISIBLE) for _ in range(8))
    return NewKey(key_id, f"pp_{key_id}_{secrets.token_hex(32)}")


def key_id_of(secret: str) -> str:
    """The visible part, or one that no key has."""
    match = _FORM.fullmatch(secret)
    return match.group(1) if match else _NOBODY


def hash_of(secret: str) -> str:
    """What is kept of a key. A slow hash protects what people choose; 256 random bits cannot be searched, so sha256."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
