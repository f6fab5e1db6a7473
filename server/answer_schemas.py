"""The JSON bodies that are written, as the OpenAPI document tells them. Knows nothing of how they come about."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel


class ErrorAnswer(BaseModel):
    error: str
    error_type: str


class TokenAnswer(BaseModel):
    id: int
    text: str
    logprob: float | None
    special: bool
    skipped: bool = False


class PromptTokenAnswer(BaseModel):
    id: int
    text: str
    logprob: float | None


FinishReasonAnswer = Literal["length", "eos_token", "stop_sequence"]


class SequenceAnswer(BaseModel):
    """One of the `best_of` sequences that was not the best."""

    generated_text: str
    finish_reason: FinishReasonAnswer
    generated_tokens: int
    seed: int | None
    prefill: list[PromptTokenAnswer]
    tokens: list[TokenAnswer]
    top_tokens: list[list[TokenAnswer]] | None


class DetailsAnswer(BaseModel):
    """`steps` are the numbers of the first and the last forward pass that held the row."""

    finish_reason: FinishReasonAnswer
    prompt_tokens: int
    skipped_tokens: int
    generated_tokens: int
    prefix_tokens: int
    seed: int | None
    prefill: list[PromptTokenAnswer]
    tokens: list[TokenAnswer]
    best_of_sequences: list[SequenceAnswer] | None
    top_tokens: list[list[TokenAnswer]] | None
    steps: tuple[int, int]


class MixedTaskAnswer(BaseModel):
    """One part of a mix, the bare backbone without a name."""

    task_id: str | None
    version: int | None
    weight: float


class GenerateAnswer(BaseModel):
    """`mix` where several tasks were asked, in the place of `task_id` and `version`."""

    generated_text: str
    task_id: str | None
    version: int | None
    mix: list[MixedTaskAnswer] | None = None
    details: DetailsAnswer | None = None


class ScoredTokenAnswer(BaseModel):
    id: int
    text: str
    logprob: float


class ContinuationAnswer(BaseModel):
    """`logprob` is the sum of its tokens'; `is_greedy`: whether each was the likeliest. `tokens` if asked for."""

    logprob: float
    num_tokens: int
    is_greedy: bool
    tokens: list[ScoredTokenAnswer] | None


class ScoreAnswer(BaseModel):
    """In the order of the continuations. `mix` as in an answer of `/generate`."""

    task_id: str | None
    version: int | None
    mix: list[MixedTaskAnswer] | None = None
    scores: list[ContinuationAnswer]


class VersionAnswer(BaseModel):
    version: int
    sha256: str
    kind: str
    num_virtual_tokens: int
    num_bytes: int
    backbone: str
    backbone_checked: bool
    created_at: datetime
    stale: bool
    quarantined: str | None


class UploadAnswer(BaseModel):
    task_id: str
    version: int
    sha256: str
    kind: str
    num_virtual_tokens: int
    num_bytes: int
    backbone_checked: bool
    created_at: datetime


class ConfigAnswer(BaseModel):
    description: str
    prompt_template: str | None
    chat_template: dict[str, str] | None
    parameters: dict[str, object]


class TaskUsageAnswer(BaseModel):
    """What the caller's tenant used of a task, on all days; it is written down every few seconds.

    `seconds` is how long rows ran, all of them added up.
    """

    requests: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float


class TaskAnswer(BaseModel):
    """`version` is the served one; where `traffic` is not null, each request's version is drawn by its weights instead.

    `public`: whether every tenant may use it. `own`: whether it is the caller's tenant's, which alone may change it,
    remove it and read its files; a task of another tenant that is listed is a public one. `quarantined` says why a
    version was taken out of service.
    """

    task_id: str
    version: int
    traffic: dict[str, float] | None
    public: bool
    own: bool
    created_at: datetime
    versions: list[VersionAnswer]
    config: ConfigAnswer
    usage: TaskUsageAnswer


class TasksAnswer(BaseModel):
    """One page of tasks, by id; `next` is the `after` of the next page, null at the end."""

    tasks: list[TaskAnswer]
    next: str | None


class TokenizedAnswer(BaseModel):
    id: int
    text: str
    start: int
    stop: int


class StatusAnswer(BaseModel):
    status: str


class InfoAnswer(BaseModel):
    """The names are text-generation-inference's, then ours."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str = "text-generation"
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_input_tokens: int
    max_total_tokens: int
    max_batch_size: int
    router: str = "polyprefix"
    version: str
    num_tasks: int
    backbone: str
    fingerprint: str
