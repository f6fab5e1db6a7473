"""A request inside the engine: what it asked for, the rows it owns, and what they have said so far.

Knows token counts. Knows nothing of tensors, scheduling or sampling.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from batching.beams import BeamSearch
from batching.types import Compile, Request, RowConstraint, TokenLogprob
from prefix_store.prefix import Prefix


@dataclass(slots=True, eq=False)
class Row:
    """One slot's tokens, behind its prefix. `num_cached` entries of the slot are valid; the next token comes then."""

    slot: int
    prefix: Prefix | None
    num_cached: int
    output_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def num_virtual_tokens(self) -> int:
        return 0 if self.prefix is None else self.prefix.num_virtual_tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's life from the queue to its end. It owns `slots`; `rows` is empty until it is admitted.

    An ordinary sequence has one row. A beam search has one while the prompt is read, then `num_beams`. A mixture has
    one for each of its prefixes. All rows of a sequence are equally far, and always in a step together.
    """

    request: Request | Compile
    slots: tuple[int, ...] = ()
    rows: list[Row] = field(default_factory=list)
    beams: BeamSearch | None = None
    uniforms: SequenceOf[float] = ()  # one for each new token, if it samples
    constraint: RowConstraint | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    admitted_at: float = 0.0
    first_step: int = 0

    @property
    def prefixes(self) -> tuple[Prefix | None, ...]:
        """One for each row that reads the prompt."""
        return self.request.prefixes if isinstance(self.request, Request) else (None,)

    @property
    def num_prompt_tokens(self) -> int:
        if isinstance(self.request, Request):
            return len(self.request.prompt_token_ids)
        if self.request.token_ids is not None:
            return len(self.request.token_ids)
        assert self.request.embeddings is not None
        return self.request.embeddings.shape[0]

    @property
    def num_slots_needed(self) -> int:
        num_beams = self.request.sampling_params.num_beams if isinstance(self.request, Request) else 1
        return max(num_beams, len(self.prefixes))

    def num_pending_tokens(self, row: Row) -> int:
        """How many of the row's tokens are known but not yet in its slot: 1 for a row that decodes."""
        return row.num_virtual_tokens + self.num_prompt_tokens + len(row.output_token_ids) - row.num_cached

    def pending_token_ids(self, row: Row, num_tokens: int) -> SequenceOf[int]:
        """The next `num_tokens` tokens to compute. Not for compiled embeddings, which have none."""
        start = row.num_cached - row.num_virtual_tokens
        if start >= self.num_prompt_tokens:
            start -= self.num_prompt_tokens
            return row.output_token_ids[start : start + num_tokens]
        prompt = self.request.prompt_token_ids if isinstance(self.request, Request) else self.request.token_ids
        assert prompt is not None
        return prompt[start : start + num_tokens]


@dataclass(frozen=True, slots=True, eq=False)
class RowStep:
    """What one step computes for one row: its next `num_new_tokens` pending tokens."""

    sequence: Sequence
    row: Row
    num_new_tokens: int

    @property
    def completes_row(self) -> bool:
        """Whether the row has no pending token after this step, so that its next token can be chosen."""
        return self.num_new_tokens == self.sequence.num_pending_tokens(self.row)

    @property
    def is_decode(self) -> bool:
        """Whether the row goes on from a token of its own, rather than from its prompt."""
        return bool(self.row.output_token_ids)
