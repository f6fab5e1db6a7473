"""One row's tokens, text and finish reason, put together from what the steps report.

Knows step outputs and the tokenizer. Knows nothing of mailboxes, HTTP or tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from batching.types import FinishReason, StepOutput, TokenLogprob
from server.errors import GenerationFailed, NotFinite, Unavailable
from server.text import Detokenizer, StopStrings, Tokenizer, earliest

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
END_OF_TEXT, STOP_STRING = "eos_token", "stop_sequence"
FINISH_REASONS = {FinishReason.STOP: END_OF_TEXT, FinishReason.LENGTH: "length"}


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
        self._stop_strings = tuple(stop_strings)
        self._stops = StopStrings(() if has_beams else stop_strings)
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._tokens: list[Token] = []
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self.finish_reason: str | None = None
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None  # when it was read
        self.last_token_at: float | None = None
        self.ended_at: float | None = None
        self.steps = (0, 0)

    @property
    def num_tokens(self) -> int:
        return len(self._token_ids)

    @property
    def tokens(self) -> list[Token]:
        """Made when they are asked for: most answers hold the text alone, which is cheaper to decode at once."""
        self._write()
        return self._tokens

    def is_last(self, token: Token) -> bool:
        """Whether the row has ended, and with this token."""
        return self.finish_reason is not None and token is self.tokens[-1]

    @property
    def text(self) -> str:
        if self._stops.has_stopped:
            return "".join(token.text for token in self._tokens)
        said = self._token_ids[:-1] if self.finish_reason == END_OF_TEXT else self._token_ids
        text = self._tokenizer.decode(said)
        return text[: earliest(text, self._stop_strings)]

    @property
    def mean_logprob(self) -> float:
        logprobs = [finite(entry.logprob) for entry in self._logprobs[: self.num_tokens]]
        return sum(logprobs) / len(logprobs) if logprobs else LOWEST_LOGPROB

    def read(self, output: StepOutput) -> None:
        """Take in one output, up to the token that ended the row.

        Raises `GenerationFailed`, `NotFinite` among it, where the engine failed this row, `Unavailable` where it gave
        it up.
        """
        self.admitted_at = output.admitted_at or None  # it may have failed in its very first step, or in no slot
        if output.finish_reason is FinishReason.ERROR:
            error = output.error or "the engine failed this row"
            if output.not_finite_row is not None:
                raise NotFinite(error, output.not_finite_row)
            raise GenerationFailed(error)
        if output.finish_reason is FinishReason.ABORT:
            raise Unavailable("the engine gave this request up")
        self.steps = (output.first_step, output.step)
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self._token_ids += output.new_token_ids
        self._logprobs += output.logprobs
        self.finish_reason = FINISH_REASONS[output.finish_reason] if output.finish_reason else None
        if self._stops.has_any:
            self._write()

    def _write(self) -> None:
        """Make the tokens that are still to be made; one that brings a stop string ends the row."""
        for i in range(len(self._tokens), len(self._token_ids)):
            self._tokens.append(self._token(i))
            if self._stops.has_stopped:
                del self._token_ids[i + 1 :]
                self.finish_reason = STOP_STRING
                break

    def _token(self, i: int) -> Token:
        token_id, reason = self._token_ids[i], self.finish_reason if i == len(self._token_ids) - 1 else None
        is_end_of_text = reason == END_OF_TEXT
        text = self._added_text(token_id, is_end_of_text, reason is not None)
        # The text of the end-of-text token is what was held back: who leaves special tokens out must not lose it.
        special = not text if is_end_of_text else self._tokenizer.is_special(token_id)
        if not self._logprobs:
            return Token(token_id, text, None, special)
        logprob = self._logprobs[i]
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
    if not logprob.top:
        return ()
    return tuple(
        Token(token_id, tokenizer.name_of(token_id), finite(logprob), tokenizer.is_special(token_id))
        for token_id, logprob in logprob.top
    )


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
