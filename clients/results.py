"""What the server answers, as frozen values.

Knows the contract's field names. Fields that a newer server adds are ignored; one that is missing is an
`UnexpectedAnswer`, raised where answers are read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

Json = Mapping[str, Any]


def known(cls: type, body: Json) -> dict[str, Any]:
    """The part of `body` that the dataclass `cls` has fields for."""
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in body.items() if name in names}


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `logprob` is the model's own, before penalty, temperature and truncation; None for the first of a
    prompt."""

    id: int
    text: str
    logprob: float | None = None
    special: bool = False
    skipped: bool = False

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(**known(cls, body))


@dataclass(frozen=True, slots=True)
class Details:
    """How a generation went.

    `finish_reason` is `length`, `eos_token` or `stop_sequence`; `prompt_tokens` leaves the task's virtual tokens out.
    `steps` are the numbers of the first and the last forward pass that held this request, where the server says so.
    `prefill` are the prompt's tokens, with `decoder_input_details`; `top_tokens` are, for each generated token, the
    most likely ones at its place, with `top_n_tokens`; `skipped_tokens` is how many the prompt lost to `truncate`.
    `choices` are the other samples of a request with `best_of` > 1, each as the server sent it.
    """

    finish_reason: str
    generated_tokens: int
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    skipped_tokens: int = 0
    seed: int | None = None
    steps: tuple[int, int] | None = None
    prefill: tuple[Token, ...] = ()
    tokens: tuple[Token, ...] = ()
    top_tokens: tuple[tuple[Token, ...], ...] = ()
    choices: tuple[Json, ...] = ()

    @classmethod
    def from_json(cls, body: Json) -> Self:
        steps = body.get("steps")
        parsed = {
            "steps": None if steps is None else (int(steps[0]), int(steps[1])),
            "prefill": tokens_from(body.get("prefill")),
            "tokens": tokens_from(body.get("tokens")),
            "top_tokens": tuple(tokens_from(tokens) for tokens in body.get("top_tokens") or ()),
            "choices": tuple(body.get("best_of_sequences") or ()),
        }
        return cls(**{**known(cls, body), **parsed})


@dataclass(frozen=True, slots=True)
class MixedTask:
    """One part of a mix; `task_id` is None and `version` too for the bare backbone."""

    task_id: str | None
    version: int | None
    weight: float

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(**known(cls, body))


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text. `task_id` is None and `version` too for the bare backbone, and for a `mix`, which has those of
    each part; `details` only when asked for."""

    generated_text: str
    task_id: str | None = None
    version: int | None = None
    mix: tuple[MixedTask, ...] = ()
    details: Details | None = None

    @classmethod
    def from_json(cls, body: Json) -> Self:
        mix = tuple(MixedTask.from_json(part) for part in body.get("mix") or ())
        return cls(**{**known(cls, body), "mix": mix, "details": details_from(body)})


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One token of a stream, as it is made; `index` starts at 1.

    `token.text` is `""` while the text may still become a stop string or half a character; the texts of all events
    joined are the generated text. `top_tokens` are the most likely ones at this place, with `top_n_tokens`. The last
    event alone has `generated_text` and `details`.
    """

    index: int
    token: Token
    top_tokens: tuple[Token, ...] = ()
    generated_text: str | None = None
    details: Details | None = None

    @property
    def is_last(self) -> bool:
        return self.generated_text is not None

    @classmethod
    def from_json(cls, body: Json) -> Self:
        parsed = {
            "token": Token.from_json(body["token"]),
            "top_tokens": tokens_from(body.get("top_tokens")),
            "details": details_from(body),
        }
        return cls(**{**known(cls, body), **parsed})


def tokens_from(bodies: Iterable[Json] | None) -> tuple[Token, ...]:
    return tuple(Token.from_json(body) for body in bodies or ())


def details_from(body: Json) -> Details | None:
    details = body.get("details")
    return None if details is None else Details.from_json(details)


@dataclass(frozen=True, slots=True)
class Version:
    """One uploaded prefix. `sha256` is that of the uploaded bytes; `stale` means made for another backbone,
    `quarantined` says why it is out of service."""

    version: int
    sha256: str
    kind: str
    num_virtual_tokens: int
    num_bytes: int
    backbone_checked: bool
    created_at: datetime
    stale: bool = False
    quarantined: str | None = None

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(**{**known(cls, body), "created_at": datetime.fromisoformat(body["created_at"])})


@dataclass(frozen=True, slots=True)
class Upload:
    """The answer to an upload. `created` is true when the task is new."""

    task_id: str
    version: Version
    created: bool

    @classmethod
    def from_json(cls, body: Json, *, created: bool) -> Self:
        return cls(task_id=body["task_id"], version=Version.from_json(body), created=created)


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """A task's defaults: a request's own parameters win; `prompt_template` has one `{inputs}`.

    `chat_template` has a template for `system`, `user` and `assistant`, each with one `{content}`.
    """

    description: str = ""
    prompt_template: str | None = None
    chat_template: Json | None = None
    parameters: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(**known(cls, body))


@dataclass(frozen=True, slots=True)
class Task:
    """A task that the caller may see. `version` is the served one's number, `versions` are all of them.

    `public`: whether every tenant may use it; `own`: whether the caller's tenant may change it.
    `traffic` are the versions among which its requests are drawn, with their weights; empty where `version` gets all.
    """

    task_id: str
    version: int
    versions: tuple[Version, ...]
    config: TaskConfig
    created_at: datetime
    traffic: Mapping[int, float] = field(default_factory=dict)
    public: bool = False
    own: bool = True

    @property
    def served(self) -> Version:
        return next(version for version in self.versions if version.version == self.version)

    @classmethod
    def from_json(cls, body: Json) -> Self:
        parsed = {
            "versions": tuple(Version.from_json(version) for version in body["versions"]),
            "config": TaskConfig.from_json(body.get("config") or {}),
            "created_at": datetime.fromisoformat(body["created_at"]),
            "traffic": {int(version): weight for version, weight in (body.get("traffic") or {}).items()},
        }
        return cls(**{**known(cls, body), **parsed})


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Some of the tasks, in the order of their ids; `next` is the `after` of the next page, None on the last."""

    tasks: tuple[Task, ...]
    next: str | None

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(tuple(Task.from_json(task) for task in body["tasks"]), body.get("next"))


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is served. `everything` is the whole answer, with text-generation-inference's names."""

    backbone: str
    fingerprint: str
    num_tasks: int
    max_input_length: int
    everything: Json

    @classmethod
    def from_json(cls, body: Json) -> Self:
        return cls(**{**known(cls, body), "everything": body})
