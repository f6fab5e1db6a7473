"""What a row may say next by its grammar, worked out in threads of its own while the backbone computes.

Knows matchers and masks, in the engine's process. Knows nothing of rows' text, or of whether a grammar may be trusted.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from copy import copy
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from server.grammar_compiler import GrammarCompiler, check
from server.kept_grammars import KeptGrammars, OwnGrammar

NUM_WORKERS = 4

Result = TypeVar("Result")


class GrammarFollower:
    """Compiles each tenant's grammars once, and begins to follow them. Used from one thread."""

    def __init__(self, tokenizer: str, eos_token_id: int) -> None:
        """`tokenizer` is the text of a tokenizer.json."""
        self._tokenizer = tokenizer
        self._eos_token_id = eos_token_id
        self._workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="grammar")
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")  # rows that go on do not wait for it
        self._kept: KeptGrammars[Future[LLMatcher]] = KeptGrammars()

    def begin(self, own: OwnGrammar, vocab_size: int) -> "GrammarRow":
        """The grammar has been tried elsewhere: compiling it may take memory and time without bounds."""
        if own not in self._kept:
            self._kept.keep(own, self._compiling.submit(lambda: self._compiler.compile(own.grammar)))
        return GrammarRow(self._kept.get(own), self._compiling, self._workers, vocab_size)

    def close(self) -> None:
        for pool in (self._compiling, self._workers):
            pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _compiler(self) -> GrammarCompiler:  # made with the first grammar: it takes half a second for GPT-2
        return GrammarCompiler(self._tokenizer, self._eos_token_id)


class GrammarRow:
    """A `batching.types.RowConstraint`. What was compiled stays before its first token: each row follows a copy."""

    def __init__(self, compiled: Future[LLMatcher], compiling: Executor, workers: Executor, vocab_size: int) -> None:
        self._workers = workers
        self._vocab_size = vocab_size
        self._num_followed = 0
        self._matcher: LLMatcher | None = None
        self._working = compiling.submit(self._begin, compiled)

    @property
    def is_ready(self) -> bool:
        return self._working.done()

    def wait(self, max_seconds: float) -> None:
        wait([self._working], max_seconds)

    def allowed(self) -> npt.NDArray[np.uint8]:
        return _result(self._working)

    def follow(self, output_token_ids: Sequence[int]) -> None:
        new = tuple(output_token_ids[self._num_followed :])
        self._num_followed += len(new)
        self._working = self._workers.submit(self._work_out, new)

    def _begin(self, compiled: Future[LLMatcher]) -> npt.NDArray[np.uint8]:
        self._matcher = _result(compiled).deep_copy()  # which is ahead of it in the same thread
        return self._work_out(())

    def _work_out(self, token_ids: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Raises `GrammarError`. What the tokenizer does not have, of a larger backbone, is never allowed."""
        assert self._matcher is not None, "follows before it has begun"
        self._matcher.consume_tokens(list(token_ids))
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        check(self._matcher)
        allowed = np.zeros((self._vocab_size + 7) // 8, np.uint8)
        allowed[: len(bits)] = bits[: len(allowed)]
        return allowed


def _result(future: Future[Result]) -> Result:
    """What it came to. An error is raised as a copy: the future keeps its own, which would keep the frames of whoever
    raised it, and with them a step's logits."""
    if error := future.exception():
        raise copy(error)
    return future.result()
