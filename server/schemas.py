"""The JSON bodies that are read, with their limits.

Strict: a number is never read from a string, a boolean or a fraction. Every field may be null, which is as if it were
left out. Knows nothing of what the fields do.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from batching.types import (
    MAX_LENGTH_PENALTY,
    MAX_LOGPROBS,
    MAX_MIXED_PREFIXES,
    MAX_NUM_BEAMS,
    MAX_PENALTY,
    MAX_TOP_K,
    MIN_PENALTY,
)

INPUTS_PLACE = "{inputs}"
CONTENT_PLACE = "{content}"
MAX_SEED = 2**64 - 1
MAX_COUNT = 2**31 - 1  # far above any context, and what any registry can hold
MAX_BEST_OF = 16
MAX_REQUEST_ROWS = 64
MAX_STOP_STRINGS = 4
MAX_GRAMMAR_BYTES = 32 << 10
MAX_WEIGHT = 1e6  # weights are relative, so that nothing is lost
MAX_TRAFFIC_VERSIONS = 16

StopString = Annotated[str, Field(min_length=1, max_length=64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Weight = Annotated[Finite, Field(gt=0, le=MAX_WEIGHT)]
VersionNumber = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}$")]  # as a key of a JSON object
Continuation = Annotated[str, Field(min_length=1)]
Template = Annotated[str, Field(max_length=8192)]

# Known parameters that are not supported and would change the text, each with the value that does not change it.
UNSUPPORTED: Mapping[str, object] = {
    "typical_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "watermark": False,
    "merged_adapters": None,
}


def refuse_unsupported(given: object, unsupported: Mapping[str, object]) -> object:
    """For a validator that runs before the fields': raise unless each of these is null or changes nothing."""
    if isinstance(given, dict):
        for name, neutral in unsupported.items():
            if given.get(name) is not None and given[name] != neutral:
                raise ValueError(f"{name} is not supported; leave it out")
    return given


# What others call a task. Passed over, it would be answered by the bare backbone.
OTHER_NAMES_OF_A_TASK = ("task", "taskId", "taskid", "task_name", "adapter", "adapter_id")


def refuse_other_names(given: object) -> object:
    """For a validator that runs before the fields': raise where a body names its task in another way than `task_id`."""
    if isinstance(given, dict):
        for name in OTHER_NAMES_OF_A_TASK:
            if given.get(name) is not None:
                raise ValueError(f"{name} is no field here; name the task as task_id")
    return given


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Closed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


JsonSchema = dict[str, Any]


class RegexGrammar(Strict):
    """The text matches the expression as a whole. Rust's dialect: no look-around, no back-references."""

    type: Literal["regex"]
    value: str


class JsonGrammar(Strict):
    """The text is JSON that fulfils a JSON schema, which may be sent as a string as well."""

    type: Literal["json"]
    value: JsonSchema | str


class NamedSchema(Closed):
    """Without a schema, any object. One that stands in its place is refused: passed over, it would be any object."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None


class JsonSchemaGrammar(Strict):
    type: Literal["json_schema"]
    value: NamedSchema


class TextFormat(Strict):
    """Whatever the model says."""

    type: Literal["text"]


class JsonObjectFormat(Closed):
    """Any JSON object; others' clients send a schema with it, LoRAX's as `schema`, huggingface_hub's as `value`."""

    type: Literal["json_object"]
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    value: JsonSchema | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


GrammarBody = Annotated[RegexGrammar | JsonGrammar | JsonSchemaGrammar, Field(discriminator="type")]
ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class TextParameters(BaseModel):
    """What decides the generated text; also what a task may carry as its defaults."""

    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[Finite, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[Finite, Field(ge=MIN_PENALTY, le=MAX_PENALTY)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_NUM_BEAMS)] | None = None
    length_penalty: Annotated[Finite, Field(ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)] | None = None
    early_stopping: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None
    truncate: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None

    @field_validator("stop")
    @classmethod
    def _none_is_unset(cls, stop: list[str] | None) -> list[str] | None:
        """An empty list stops nowhere, as null does; clients that always send one must not undo a task's default."""
        return stop or None


class GenerateParameters(Strict, TextParameters):
    """The request's own parameters. Unknown ones are ignored, known and unsupported ones refused.

    `response_format` says the same as `grammar`, in another dialect.
    """

    task_id: str | None = None
    adapter_id: str | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    return_full_text: bool | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    grammar: GrammarBody | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, given: object) -> object:
        return refuse_unsupported(given, UNSUPPORTED)

    @model_validator(mode="after")
    def _one_grammar(self) -> Self:
        if self.grammar is not None and self.response_format is not None:
            raise ValueError("grammar and response_format say the same thing; leave one out")
        return self

    @property
    def num_samples(self) -> int:
        """Of each prompt."""
        return self.best_of or 1

    @property
    def num_slots(self) -> int:
        """That each sample takes."""
        return self.num_beams or 1


class TaskMix(Closed):
    """Several tasks at once, by name, with their weights, which are relative to their sum. `base` is the bare backbone.

    Each has a row of its own that reads the same prompt, and the next token is chosen from the weighted mean of their
    next-token distributions. So log-probabilities and penalties are the mixture's. Not with beams.
    """

    mix: Annotated[dict[str, Weight], Field(min_length=2, max_length=MAX_MIXED_PREFIXES)]


class GenerateBody(Strict):
    """`inputs` must be there, but may be null or empty: then the end-of-text token is fed in its place."""

    inputs: str | None
    task_id: str | TaskMix | None = None
    stream: bool | None = None
    parameters: GenerateParameters | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_misplaced(cls, given: object) -> object:
        if isinstance(given, dict):
            for name in given:
                if name in GenerateParameters.model_fields.keys() - cls.model_fields.keys() and given[name] is not None:
                    raise ValueError(f"{name} belongs in parameters")
        return refuse_other_names(given)


def check_place(template: str, place: str) -> str:
    if template.count(place) != 1:
        raise ValueError(f"a template holds {place} exactly once, here {template.count(place)} times")
    return template


class ScoreBody(Strict):
    """`details`: each token's own log-probability as well."""

    inputs: str | None
    continuations: Annotated[list[Continuation], Field(min_length=1, max_length=MAX_REQUEST_ROWS)]
    task_id: str | TaskMix | None = None
    details: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_names(cls, given: object) -> object:
        return refuse_other_names(refuse_unsupported(given, {"parameters": {}}))


class TaskParameters(Closed, TextParameters):
    """A task's own defaults; the request's own values win."""


class ChatTemplate(Closed):
    """How each role's message is written; the assistant's, up to its place, also asks for the answer."""

    system: Template
    user: Template
    assistant: Template

    @field_validator("system", "user", "assistant")
    @classmethod
    def _one_place(cls, template: str) -> str:
        return check_place(template, CONTENT_PLACE)


class ConfigPatch(Closed):
    """What is given is set, what is null is cleared, what is left out stays."""

    description: Annotated[str, Field(max_length=1000)] | None = None
    prompt_template: Template | None = None
    chat_template: ChatTemplate | None = None
    parameters: TaskParameters | None = None

    @field_validator("prompt_template")
    @classmethod
    def _one_place(cls, template: str | None) -> str | None:
        return None if template is None else check_place(template, INPUTS_PLACE)


class TaskPatch(Closed):
    """`version`: serve it from now on. `traffic`: draw each request's version by these weights, which are relative to
    their sum, until an upload, another `version` or null ends it."""

    version: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    traffic: Annotated[dict[VersionNumber, Weight], Field(min_length=1, max_length=MAX_TRAFFIC_VERSIONS)] | None = None
    config: ConfigPatch | None = None
    public: bool | None = None

    @property
    def traffic_weights(self) -> dict[int, float] | None:
        """By version; empty where traffic is to end, None where nothing is said of it."""
        if "traffic" not in self.model_fields_set:
            return None
        return {int(version): weight for version, weight in (self.traffic or {}).items()}


class TextUpload(Closed):
    """A fixed instruction or worked examples, to be compiled into a prefix."""

    text: Annotated[str, Field(min_length=1)]


class TokenizeBody(Strict):
    inputs: str
