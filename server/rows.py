"""One row's tokens, text and finish reason, put together from what the steps report.

Knows step outputs and the tokenizer. Knows nothing of mailboxes, HTTP or tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from batching.types import FinishReason, StepOutput, TokenLogprob
from server.errors import GenerationFailed, NotFinite, Unavailable
from server.text import Detokenizer, StopStrings, Tokenizer, earliest

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
FINISH_REASONS = {FinishReason.STOP: "eos_token", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token with the text that it added, and the most likely tokens at its place."""

    id: int
    text: str
    logprob: float | None
    special: bool
    top: tuple["Token", ...] = ()


class Row:
    """Grows with every step's output, until it has a `finish_reason`: `eos_token`, `length` or `stop_sequence`.

    A row of a beam search reports all its tokens at once; a stop string only cuts its text.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str], has_beams: bool = False) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(() if has_beams else stop_strings)
        self._cuts = tuple(stop_strings) if has_beams else ()
        self.tokens: list[Token] = []
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.finish_reason: str | None = None
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None  # when it was read
        self.last_token_at: float | None = None
        self.steps = (0, 0)

    @property
    def text(self) -> str:
        text = "".join(token.text for token in self.tokens)
        return text[: earliest(text, self._cuts)]

    @property
    def mean_logprob(self) -> float:
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(logprobs) / len(logprobs) if logprobs else LOWEST_LOGPROB

    def read(self, output: StepOutput) -> list[Token]:
        """Take in one output and return its tokens, up to the one that ended the row.

        Raises `GenerationFailed`, `NotFinite` among it, where the engine failed this row, `Unavailable` where it gave
        it up.
        """
        if output.finish_reason is FinishReason.ERROR:
            error = output.error or "the engine failed this row"
            if output.not_finite_row is not None:
                raise NotFinite(error, output.not_finite_row)
            raise GenerationFailed(error)
        if output.finish_reason is FinishReason.ABORT:
            raise Unavailable("the engine gave this request up")
        self.admitted_at = output.admitted_at
        self.steps = (output.first_step, output.step)
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        num_before = len(self.tokens)
        for i, token_id in enumerate(output.new_token_ids):
            is_last = i == len(output.new_token_ids) - 1
            reason = output.finish_reason if is_last else None
            logprob = output.logprobs[i] if output.logprobs else None
            self.tokens.append(self._token(token_id, logprob, reason))
            if self._stops.has_stopped:
                self.finish_reason = "stop_sequence"
                break
        else:
            self.finish_reason = FINISH_REASONS[output.finish_reason] if output.finish_reason else None
        return self.tokens[num_before:]

    def _token(self, token_id: int, logprob: TokenLogprob | None, reason: FinishReason | None) -> Token:
        is_end_of_text = reason is FinishReason.STOP
        text = self._added_text(token_id, is_end_of_text, reason is not None)
        special = is_end_of_text or self._tokenizer.is_special(token_id)
        if logprob is None:
            return Token(token_id, text, None, special)
        return Token(token_id, text, finite(logprob.logprob), special, likeliest(self._tokenizer, logprob))

    def _added_text(self, token_id: int, is_end_of_text: bool, is_last: bool) -> str:
        text = "" if is_end_of_text else self._detokenizer.push(token_id)
        if is_last:
            text += self._detokenizer.finish()
        text = self._stops.push(text)
        return text + self._stops.finish() if is_last and not self._stops.has_stopped else text


def prompt_tokens(tokenizer: Tokenizer, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> list[Token]:
    """A prompt's tokens, each with the text that it adds; `logprobs` are those of all but the first, or none.

    The first one never has a log-probability: nothing of the prompt foretells it.
    """
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push(token_id) for token_id in token_ids]
    texts[-1] += detokenizer.finish()
    tokens = []
    for i, (token_id, text) in enumerate(zip(token_ids, texts, strict=True)):
        logprob = logprobs[i - 1] if i and logprobs else None
        scored = (None, ()) if logprob is None else (finite(logprob.logprob), likeliest(tokenizer, logprob))
        tokens.append(Token(token_id, text, scored[0], tokenizer.is_special(token_id), scored[1]))
    return tokens


def likeliest(tokenizer: Tokenizer, logprob: TokenLogprob) -> tuple[Token, ...]:
    """The most likely tokens at a token's place, each as it reads alone."""
    return tuple(
        Token(token_id, tokenizer.decode([token_id]), finite(logprob), tokenizer.is_special(token_id))
        for token_id, logprob in logprob.top
    )


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
