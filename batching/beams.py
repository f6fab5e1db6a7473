"""Beam search for one request: keeps the best hypotheses, step by step.

The arithmetic is that of transformers' `GenerationMixin._beam_search` (scores in float32, `2 * num_beams` candidates,
the same stopping heuristic), so that answers are equal to it. Knows nothing of slots, caches or other requests.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from batching.sampler import top_tokens
from batching.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Branch:
    """One running hypothesis after a step: which one it grew from, and its new token."""

    parent: int
    token: TokenLogprob


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished one, with its length-normalised score."""

    score: float
    tokens: tuple[TokenLogprob, ...]


@dataclass(slots=True, eq=False)
class BeamSearch:
    num_beams: int
    length_penalty: float
    early_stopping: bool
    max_new_tokens: int
    eos_token_id: int
    scores: Tensor = field(default_factory=lambda: torch.zeros(1))  # [B] of the running hypotheses, best first
    finished: list[Hypothesis] = field(default_factory=list)  # best first
    num_generated: int = 0
    is_done: bool = False

    def advance(
        self, log_probs: Tensor, own_logprobs: Tensor, histories: list[list[TokenLogprob]], num_top: int
    ) -> list[Branch]:
        """Take one step over the B running hypotheses (1 at first, then `num_beams`), whose tokens are `histories`.

        `log_probs` `[B, vocab_size]` float32 after penalties decides; `own_logprobs` `[B, vocab_size]` are the model's
        own and only reported, each with its `num_top` likeliest tokens. Returns the next running hypotheses, best
        first; once `is_done`, `finished[0]` is the answer.
        """
        vocab_size = log_probs.shape[1]
        total = (log_probs + self.scores[:, None].to(log_probs.device)).view(-1)  # [B * V]
        top = total.topk(min(2 * self.num_beams, total.numel()))
        scores = top.values.cpu()
        indices: list[int] = top.indices.tolist()
        reported = own_logprobs.reshape(-1)[top.indices].tolist()
        tops = top_tokens(own_logprobs, num_top)
        candidates = [
            Branch(index // vocab_size, TokenLogprob(index % vocab_size, logprob, tops[index // vocab_size]))
            for index, logprob in zip(indices, reported, strict=True)
        ]

        self.num_generated += 1
        is_last = self.num_generated == self.max_new_tokens
        ends = [is_last or branch.token.token_id == self.eos_token_id for branch in candidates]
        normalised = (scores / self.num_generated**self.length_penalty).tolist()
        # Only the best num_beams candidates may finish; the others are there to keep the search going.
        for branch, has_ended, score in list(zip(candidates, ends, normalised, strict=True))[: self.num_beams]:
            if has_ended:
                self.finished.append(Hypothesis(score, (*histories[branch.parent], branch.token)))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.num_beams :]

        running = [i for i, has_ended in enumerate(ends) if not has_ended][: self.num_beams]
        self.scores = scores[running]
        self.is_done = is_last or not self._can_improve()
        return [candidates[i] for i in running]

    def _can_improve(self) -> bool:
        """Whether the best running hypothesis could still beat the worst finished one (transformers' heuristic)."""
        if len(self.finished) < self.num_beams:
            return True
        best_possible = float(self.scores[0] / self.num_generated**self.length_penalty)
        return not self.early_stopping and best_possible > self.finished[-1].score
