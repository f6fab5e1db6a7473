"""The JSON bodies of OpenAI's routes that are read, with their limits.

As strict as our own: unknown fields are ignored, known ones that are not supported and would change the text refused.
Knows nothing of what the fields do.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from batching.types import MAX_LOGPROBS
from server.schemas import (
    MAX_BEST_OF,
    MAX_COUNT,
    MAX_REQUEST_ROWS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    Finite,
    ResponseFormat,
    StopString,
    Strict,
    refuse_unsupported,
)

MAX_MESSAGES = 256

# One list of errors for each kind of prompt would be as long as the prompt: the first one says it all.
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_REQUEST_ROWS, fail_fast=True)]
TokenIdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_REQUEST_ROWS, fail_fast=True)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]


# What would change the text elsewhere, with what would not: passed over, the answer would not be what was asked for.
OF_OUR_DIALECT: Mapping[str, object] = {
    "task_id": None,
    "adapter_id": None,
    "max_new_tokens": None,
    "min_new_tokens": 0,
    "do_sample": None,
    "top_k": 0,
    "typical_p": 1,
    "repetition_penalty": 1,
    "num_beams": 1,
    "early_stopping": False,
    "best_of": 1,
    "truncate": None,
    "watermark": False,
    "grammar": None,
}
OF_VLLMS_DIALECT: Mapping[str, object] = {
    "min_p": 0,
    "min_tokens": 0,
    "stop_token_ids": [],
    "ignore_eos": False,
    "use_beam_search": False,
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_grammar": None,
    "structured_outputs": None,
}


class StreamOptions(Strict):
    include_usage: bool | None = None


class SampledBody(Strict):
    """What completions and chats have in common. Null is as if left out."""

    UNSUPPORTED: ClassVar[Mapping[str, object]] = {
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "logit_bias": {},
        **OF_OUR_DIALECT,
        **OF_VLLMS_DIALECT,
    }

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_REQUEST_ROWS)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: StopString | StopStrings | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, given: object) -> object:
        unsupported = {name: value for name, value in cls.UNSUPPORTED.items() if name not in cls.model_fields}
        return refuse_unsupported(given, unsupported)

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        return self

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stop_strings(self) -> list[str] | None:
        return [self.stop] if isinstance(self.stop, str) else self.stop or None


class CompletionBody(SampledBody):
    """`prompt` must be there; null is the end-of-text token alone. Token ids are fed as they are, in no template."""

    UNSUPPORTED: ClassVar[Mapping[str, object]] = {**SampledBody.UNSUPPORTED, "suffix": ""}

    prompt: str | TokenIds | Texts | TokenIdLists | None
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _best_of_enough(self) -> Self:
        if self.best_of is not None and self.best_of < self.num_choices:
            raise ValueError(f"best_of is {self.best_of}; expected at least n, which is {self.num_choices}")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each one as a text or as token ids."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(Strict):
    type: Literal["text"]
    text: str


TextParts = Annotated[list[TextPart], Field(fail_fast=True)]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | TextParts

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(SampledBody):
    UNSUPPORTED: ClassVar[Mapping[str, object]] = {
        **SampledBody.UNSUPPORTED,
        "tools": [],
        "functions": [],
        "tool_choice": "none",
        "function_call": "none",
        "modalities": ["text"],
        "audio": None,
        "prediction": None,
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true only")
        return self
