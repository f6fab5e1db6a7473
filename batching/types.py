"""Everything that crosses between the server and the engine: plain frozen values, whole when made.

Knows no scheduler, no cache and no model. A value here can be sent to another thread or process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prefix_store.prefix import Prefix

MAX_TOP_K = 256
MAX_LOGPROBS = 20
MAX_NUM_BEAMS = 16
MAX_MIXED_PREFIXES = 8
# What float32 carries: a logit times or by a penalty, a score by a length to the power of one.
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0
MAX_LENGTH_PENALTY = 10.0


class RequestError(ValueError):
    """A request that can never be served as it is; the message says what was wrong and what was expected."""


class ContextTooLong(RequestError):
    def __init__(self, num_tokens: int, max_model_len: int) -> None:
        super().__init__(f"prefix + prompt + max_new_tokens is {num_tokens} tokens; the backbone has {max_model_len}")


class FinishReason(StrEnum):
    STOP = "stop"  # the end-of-text token
    LENGTH = "length"  # max_new_tokens
    ABORT = "abort"  # the client went away, a stop string, a deadline
    ERROR = "error"  # this row failed, and this row only


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row chooses its tokens.

    Greedy when `temperature` is 0. Order of what is applied to the logits: repetition penalty, `min_new_tokens`,
    the request's constraint, temperature, top-k, top-p (that of transformers). Log-probabilities are the model's own,
    before any of it.

    `seed`: the row's random stream is a function of (seed, choice) and the token's index alone; None draws a fresh one.
    `choice`: which of the n samples of one request this row is.
    `logprobs`: None reports none, 0 the chosen token's, n also the n most likely tokens'.
    `early_stopping`: as in transformers' beam search, False (heuristic) or True (stop at num_beams finished).
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    choice: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside the ranges that the sampler is exact for; raises `RequestError`."""
        _expect(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _expect(
            0 <= self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            self.min_new_tokens,
            f"0 to max_new_tokens ({self.max_new_tokens})",
        )
        _expect(0 <= self.temperature < math.inf, "temperature", self.temperature, "a finite number from 0")
        _expect(0 <= self.top_k <= MAX_TOP_K, "top_k", self.top_k, f"0 (off) to {MAX_TOP_K}")
        _expect(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1")
        _expect(
            MIN_PENALTY <= self.repetition_penalty <= MAX_PENALTY,
            "repetition_penalty",
            self.repetition_penalty,
            f"{MIN_PENALTY} to {MAX_PENALTY}",
        )
        _expect(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "0 to 2^64 - 1")
        _expect(0 <= self.choice < 2**64, "choice", self.choice, "0 to 2^64 - 1")
        _expect(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            self.logprobs,
            f"0 to {MAX_LOGPROBS}",
        )
        _expect(1 <= self.num_beams <= MAX_NUM_BEAMS, "num_beams", self.num_beams, f"1 to {MAX_NUM_BEAMS}")
        _expect(
            self.num_beams == 1 or self.temperature == 0,
            "temperature",
            self.temperature,
            "0 (greedy) with num_beams > 1",
        )
        _expect(
            abs(self.length_penalty) <= MAX_LENGTH_PENALTY,
            "length_penalty",
            self.length_penalty,
            f"-{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}",
        )


def _expect(is_right: bool, name: str, value: object, expected: str) -> None:
    if not is_right:
        raise RequestError(f"{name} is {value}; expected {expected}")


class RowConstraint(Protocol):
    """What one row may say next, worked out while the backbone computes. The engine never waits for it while other rows
    go on: a row that is not ready by the end of a step is computed again with the next one.
    """

    @property
    def is_ready(self) -> bool:
        """Whether what may come next is known, or that it never will be."""

    def wait(self, max_seconds: float) -> None:
        """Until it is ready, but no longer than this."""

    def allowed(self) -> npt.NDArray[np.uint8]:
        """A bit for each token, the lowest of a byte first: `[ceil(vocab_size / 8)]` with at least one set, once it is
        ready. Raises where the row cannot go on."""

    def follow(self, output_token_ids: Sequence[int]) -> None:
        """Begin to work out what may come after all that the row has said. Returns at once."""


# Begins to follow a request's constraint, for a row that has said nothing yet, in a vocabulary of so many tokens.
# Returns at once.
Constrain: TypeAlias = Callable[[Any, int], RowConstraint]


@dataclass(frozen=True, slots=True, eq=False)
class MixedPrefix:
    """One row's part of a mixture: its prefix, None for the bare backbone, and its weight relative to the others'."""

    prefix: Prefix | None
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt to be continued. `prefix` None is the bare backbone. `prompt_token_ids` holds at least one token.

    `weight`: the tenant's share of the engine, relative to the others'. `constraint` is a value that the
    engine's `Constrain` knows how to follow; None lets the row say anything.

    `mix`: in place of one `prefix` two to `MAX_MIXED_PREFIXES`, each with a row of its own that reads the same prompt.
    The next token is chosen from the weighted mean of their next-token distributions, as from those of one row, and all
    of them go on from it; so log-probabilities and penalties are the mixture's.
    """

    request_id: str
    tenant: str
    prompt_token_ids: tuple[int, ...]
    prefix: Prefix | None = None
    sampling_params: SamplingParams = SamplingParams()
    weight: float = 1.0
    constraint: Any = None
    mix: tuple[MixedPrefix, ...] = ()

    @property
    def prefixes(self) -> tuple[Prefix | None, ...]:
        """One for each row that reads the prompt."""
        return tuple(mixed.prefix for mixed in self.mix) or (self.prefix,)


@dataclass(frozen=True, slots=True, eq=False)
class Compile:
    """Turn a text (`token_ids`) or foreign `embeddings` `[T, n_embd]` into keys and values. Exactly one is given."""

    request_id: str
    tenant: str
    token_ids: tuple[int, ...] | None = None
    embeddings: Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


class TokenLogprob(NamedTuple):
    """One token's own log-probability, and the most likely tokens at its place as (token id, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class StepOutput(NamedTuple):
    """What one step did for one request.

    A step may report no new token: of a request that has only been admitted, that failed or that was aborted. The
    end-of-text token that ended a row is reported as its last token. With beams all tokens are reported at the end.
    `logprobs` matches `new_token_ids` when asked for, else is empty. `prompt_logprobs`, with the first token when asked
    for, has one entry for each prompt token but the first.
    `not_finite_row`: where the request failed because the backbone's own numbers for it, before its sampling
    parameters play a part, were infinite or NaN, whose they were, by its place in the request's `prefixes`: its prefix
    does that, or the backbone.
    `step` counts forward passes from the engine's start; `admitted_at` and `first_step` say when this request
    left the queue (monotonic seconds) and the first step that held it.
    """

    request_id: str
    new_token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    not_finite_row: int | None = None
    step: int = 0
    first_step: int = 0
    admitted_at: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """The answer to `Compile`: `past_key_values` `[n_layer, 2, T, n_head, head_dim]` on the CPU, or an error.

    `is_finite`: false where the error is what was to be compiled: infinite numbers, or NaN, came of it.
    """

    request_id: str
    past_key_values: Tensor | None = None
    error: str | None = None
    is_finite: bool = True


class StepRow(NamedTuple):
    """One row of a forward pass: whose it is, its slot, and how many tokens it computed there; one that decodes goes
    on from a token of its own."""

    request_id: str
    slot: int
    num_tokens: int
    is_decode: bool


@dataclass(frozen=True, slots=True)
class StepStats:
    """Facts of one forward pass, for whoever watches: its rows, of how many distinct prefixes (the bare backbone counts
    as one), how long it took in seconds, and how many answers got a token by it."""

    step: int
    rows: tuple[StepRow, ...]
    num_distinct_prefixes: int
    num_waiting: int
    num_free_slots: int
    seconds: float
    num_tokens: int

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of prompts."""
        return sum(row.num_tokens for row in self.rows if not row.is_decode)

    @property
    def num_decode_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows if row.is_decode)
