"""What a row may say next by its grammar, worked out in threads of its own while the backbone computes.

Knows matchers and masks. Knows nothing of how a grammar is compiled, or of the rows' text.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, wait

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from server.grammar_compiler import check


class CompiledGrammar:
    """A `batching.types.Constraint`. `matcher` stays before its first token: each row follows a copy."""

    def __init__(self, matcher: LLMatcher, workers: Executor) -> None:
        self._matcher = matcher
        self._workers = workers

    def begin(self, vocab_size: int) -> "GrammarRow":
        return GrammarRow(self._matcher.deep_copy(), self._workers, vocab_size)


class GrammarRow:
    """A `batching.types.RowConstraint`."""

    def __init__(self, matcher: LLMatcher, workers: Executor, vocab_size: int) -> None:
        self._matcher = matcher
        self._workers = workers
        self._vocab_size = vocab_size
        self._num_followed = 0
        self._working = workers.submit(self._work_out, ())

    @property
    def is_ready(self) -> bool:
        return self._working.done()

    def wait(self, max_seconds: float) -> None:
        wait([self._working], max_seconds)

    def allowed(self) -> npt.NDArray[np.bool_]:
        return self._working.result()

    def follow(self, output_token_ids: Sequence[int]) -> None:
        new = tuple(output_token_ids[self._num_followed :])
        self._num_followed += len(new)
        self._working = self._workers.submit(self._work_out, new)

    def _work_out(self, token_ids: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Raises `GrammarError`. What the tokenizer does not have, of a larger backbone, is never allowed."""
        self._matcher.consume_tokens(list(token_ids))
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        check(self._matcher)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        return np.pad(allowed, (0, self._vocab_size - len(allowed)))
