"""What a prefix is: one task's tuned keys and values, and the shape of the backbone that they fit.

Knows tensors and their shapes. Knows nothing of files, tenants or versions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from prefix_store.shared_memory import Place, SharedMemory


@dataclass(frozen=True, slots=True)
class BackboneShape:
    """The numbers of a GPT-2 that decide which prefixes fit it."""

    n_layer: int
    n_head: int
    head_dim: int
    n_positions: int

    @property
    def n_embd(self) -> int:
        return self.n_head * self.head_dim


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What the store has to know of the backbone: its name, its shape and the fingerprint of its weights (sha256)."""

    name: str
    shape: BackboneShape
    fingerprint: str


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """One task's virtual tokens, as keys and values for every layer (Li & Liang 2021, section 4.2).

    `past_key_values` is `[n_layer, 2, num_virtual_tokens, n_head, head_dim]` on the CPU; index 0 of the second axis is
    the key, 1 the value. `revision` is the sha256 of the native file, in hexadecimal. `kind` is what was uploaded:
    `prefix`, `prefix_tuning`, `prompt_tuning`, `text`. One that has a `place` in shared memory is pickled without its
    numbers, for a process that shares that memory.
    """

    past_key_values: Tensor
    revision: str
    kind: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    place: Place | None = None

    @property
    def num_virtual_tokens(self) -> int:
        return self.past_key_values.shape[2]

    @property
    def nbytes(self) -> int:
        return self.past_key_values.nbytes

    def shared(self, memory: SharedMemory) -> "Prefix":
        """The same in shared memory. Raises as `SharedMemory.put`."""
        past_key_values, place = memory.put(self.past_key_values)
        return replace(self, past_key_values=past_key_values, place=place)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        facts = self.revision, self.kind, self.metadata
        return (Prefix, (self.past_key_values, *facts)) if self.place is None else (_look_at, (self.place, *facts))


def _look_at(place: Place, revision: str, kind: str, metadata: Mapping[str, str]) -> Prefix:
    return Prefix(place.tensor(), revision, kind, metadata, place)


@dataclass(frozen=True, slots=True, eq=False)
class PromptEmbeddings:
    """A foreign prompt that the backbone still has to turn into a `Prefix`.

    `embeddings` is `[num_virtual_tokens, n_embd]` on the CPU.
    """

    embeddings: Tensor
    kind: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_virtual_tokens(self) -> int:
        return self.embeddings.shape[0]
