"""Rows as OpenAI's answers: one object, or the chunks of a stream, of text or of chat.

Knows OpenAI's names. Knows nothing of how rows come about.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, ClassVar, Protocol

from server.answers import num_generated_tokens, num_prompt_tokens, sse
from server.reading import Added, Sample
from server.rows import Token, prompt_tokens
from server.running import best_first
from server.text import UNFINISHED, Tokenizer

FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
DONE = b"data: [DONE]\n\n"


class Form(Protocol):
    """How one choice is written: whole, or the part that some tokens add, `start` characters into its text."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    @property
    def is_long(self) -> bool:
        """Whether more is told of each token than its text, or of the prompt's tokens."""

    def whole(self, sample: Sample) -> dict[str, Any]: ...
    def part(self, sample: Sample, tokens: Sequence[Token], start: int) -> dict[str, Any]: ...
    def preceding(self, sample: Sample) -> list[Token]:
        """What is said before the row's first token."""


@dataclass(frozen=True, slots=True)
class TextForm:
    """A completion's choices. `echo`: the prompt comes before the text, as it was fed."""

    tokenizer: Tokenizer
    echo: bool
    has_logprobs: bool
    id_prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    @property
    def is_long(self) -> bool:
        return self.has_logprobs or self.echo

    def whole(self, sample: Sample) -> dict[str, Any]:
        before = self.preceding(sample)
        text = "".join(token.text for token in before) + sample.row.text
        tokens = [*before, *sample.row.tokens] if self.has_logprobs else []
        return {"text": text, "logprobs": self._logprobs(tokens, 0)}

    def part(self, sample: Sample, tokens: Sequence[Token], start: int) -> dict[str, Any]:
        return {"text": "".join(token.text for token in tokens), "logprobs": self._logprobs(tokens, start)}

    def preceding(self, sample: Sample) -> list[Token]:
        if not self.echo:
            return []
        return prompt_tokens(self.tokenizer, sample.request.prompt_token_ids, sample.row.prompt_logprobs)

    def _logprobs(self, tokens: Sequence[Token], start: int) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        names = [self.tokenizer.name_of(token.id) for token in tokens]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_likeliest(name, token) for name, token in zip(names, tokens, strict=True)],
            "text_offset": list(accumulate((len(token.text) for token in tokens), initial=start))[:-1],
        }


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A chat's choices."""

    tokenizer: Tokenizer
    has_logprobs: bool
    id_prefix: ClassVar[str] = "chatcmpl"
    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"

    @property
    def is_long(self) -> bool:
        return self.has_logprobs

    def whole(self, sample: Sample) -> dict[str, Any]:
        message = {"role": "assistant", "content": sample.row.text}
        return {"message": message, "logprobs": self._logprobs(sample.row.tokens if self.has_logprobs else [])}

    def part(self, sample: Sample, tokens: Sequence[Token], start: int) -> dict[str, Any]:
        role = {"role": "assistant"} if tokens[0] is sample.row.tokens[0] else {}
        delta = {**role, "content": "".join(token.text for token in tokens)}
        return {"delta": delta, "logprobs": self._logprobs(tokens)}

    def preceding(self, sample: Sample) -> list[Token]:
        return []

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return {
            "content": [
                {**self._score(token), "top_logprobs": [self._score(top) for top in token.top]} for token in tokens
            ]
        }

    def _score(self, token: Token) -> dict[str, Any]:
        name = self.tokenizer.name_of(token.id)
        raw = None if UNFINISHED in name else list(name.encode())  # a piece of a character has no text of its own
        return {"token": name, "logprob": token.logprob, "bytes": raw}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is the same in all that is said to one request."""

    request_id: str
    model: str
    form: Form
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, samples: Sequence[Sample], num_choices: int) -> dict[str, Any]:
        """The `num_choices` best samples of each prompt; all of them, where it is all, in their order."""
        chosen: list[Sample] = []
        for _, of_prompt in groupby(samples, key=lambda sample: id(sample.generation)):
            several = list(of_prompt)
            chosen += several if len(several) == num_choices else best_first(several)[:num_choices]
        choices = [
            {"index": i, **self.form.whole(sample), "finish_reason": _finish_reason(sample)}
            for i, sample in enumerate(chosen)
        ]
        return {**self._head(self.form.whole_object), "choices": choices, "usage": usage_of(samples)}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(self.form.chunk_object), "choices": choices}

    def _head(self, object_name: str) -> dict[str, Any]:
        return {
            "id": f"{self.form.id_prefix}-{self.request_id}",
            "object": object_name,
            "created": self.created,
            "model": self.model,
        }


class Chunks:
    """A stream's events: one for each token of each row, perhaps the usage, and the end."""

    def __init__(self, answer: Answer, samples: Sequence[Sample], include_usage: bool) -> None:
        self._answer = answer
        self._samples = samples
        self._include_usage = include_usage
        self._index = {sample: i for i, sample in enumerate(samples)}
        self._num_written = dict.fromkeys(samples, 0)  # characters

    def of_step(self, added: Added) -> bytes:
        return b"".join(
            self._event(sample, token, is_last=sample.row.is_last(token))
            for sample, tokens in added.items()
            for token in tokens
        )

    def at_end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return sse({**self._answer.chunk([]), "usage": usage_of(self._samples)}) + DONE

    def _event(self, sample: Sample, token: Token, is_last: bool) -> bytes:
        form, start = self._answer.form, self._num_written[sample]
        before = form.preceding(sample) if token is sample.row.tokens[0] else []
        tokens = [*before, token]
        self._num_written[sample] += sum(len(each.text) for each in tokens)
        choice = {
            "index": self._index[sample],
            **form.part(sample, tokens, start),
            "finish_reason": _finish_reason(sample) if is_last else None,
        }
        return sse({**self._answer.chunk([choice]), **({"usage": None} if self._include_usage else {})})


def usage_of(samples: Sequence[Sample]) -> dict[str, int]:
    num_prompt, num_generated = num_prompt_tokens(samples), num_generated_tokens(samples)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }


def _finish_reason(sample: Sample) -> str:
    assert sample.row.finish_reason is not None, "a row that has not ended has no finish reason"
    return FINISH_REASONS[sample.row.finish_reason]


def _likeliest(name: str, token: Token) -> dict[str, float] | None:
    """By their texts; of two tokens with the same text the likelier one's. The token itself is always among them."""
    if token.logprob is None:
        return None
    likeliest: dict[str, float] = {}
    for text, logprob in (*((top.text, top.logprob) for top in token.top), (name, token.logprob)):
        if logprob is not None:
            likeliest.setdefault(text, logprob)
    return likeliest
