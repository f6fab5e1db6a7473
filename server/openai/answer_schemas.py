"""OpenAI's JSON bodies that are written, as the OpenAPI document tells them. Knows nothing of how they come about."""

from typing import Literal

from pydantic import BaseModel


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(BaseModel):
    error: OpenAIError


class UsageCounts(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(BaseModel):
    """Of each token; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageCounts


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class Score(BaseModel):
    token: str
    logprob: float | None
    bytes: list[int] | None


class TokenScore(Score):
    top_logprobs: list[Score]


class ChatLogprobs(BaseModel):
    content: list[TokenScore]


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageCounts


class ModelAnswer(BaseModel):
    """A task, or the backbone itself, which has no parent."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "polyprefix"
    root: str
    parent: str | None


class ModelsAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]
