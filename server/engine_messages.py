"""What the server and its engine's process say to each other, beside the requests themselves: plain frozen values.

First `LoadBackbone`, answered by `BackboneFacts`; then `Allocate`, answered by `batching.checks.Capacity`; in place of
either `StartFailure`. Then works and `Abort`s one way, many in one message, with `Keep` and `Drop` for the prefixes
they have; `Pulse`s the other. `Death` is the last word.
"""

from dataclasses import dataclass
from typing import TypeAlias

from batching.types import Compile, Compiled, Request, StepOutput, StepStats
from prefix_store.prefix import BackboneSpec, Prefix

Work: TypeAlias = Request | Compile
Letter: TypeAlias = StepOutput | Compiled


@dataclass(frozen=True, slots=True)
class LoadBackbone:
    model: str
    device: str
    dtype: str
    is_deterministic: bool = False


@dataclass(frozen=True, slots=True)
class BackboneFacts:
    """The served backbone, as far as the server speaks of it; `tokenizer` is the text of its tokenizer.json.

    `is_slow`: it runs on a CPU without the compiled loops.
    """

    spec: BackboneSpec
    tokenizer: str
    eos_token_id: int
    dtype_name: str
    device_name: str
    is_slow: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Allocate:
    """What `batching.engine.Engine` is told."""

    max_num_seqs: int | None
    max_model_len: int | None
    has_reserve: bool


@dataclass(frozen=True, slots=True)
class StartFailure:
    reason: str


@dataclass(frozen=True, slots=True)
class Keep:
    """From now on `number` stands for this prefix."""

    number: int
    prefix: Prefix


@dataclass(frozen=True, slots=True)
class Drop:
    """No request that follows has it."""

    number: int


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one step did: letters for the mailboxes, requests that were refused and why, and how things stood after it.

    `stats` is None where the step ran no forward pass. `num_taken` counts the works and aborts that came before it,
    since the start. With `has_work`, further steps follow by themselves.
    """

    letters: tuple[Letter, ...]
    refusals: tuple[tuple[str, str], ...]
    stats: StepStats | None
    num_waiting: int
    num_running: int
    num_free_slots: int
    num_taken: int
    has_work: bool


@dataclass(frozen=True, slots=True)
class Death:
    """Why the engine cannot go on."""

    reason: str
