"""How a prefix is trained: every number, with the paper's as presets.

Knows the ranges. Knows nothing of tensors or files.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import BadSettings
from training.examples import is_unicode

OPTIMIZERS = ("adamw", "muon")
PLACE = "{inputs}"
PAPER_TEMPLATE = f" {PLACE} <|endoftext|>"


@dataclass(frozen=True, slots=True)
class Settings:
    """How one task's prefix is trained. Steps are updates of the prefix.

    `mlp_width` is the hidden size of the reparametrisation (section 4.3); 0 tunes keys and values directly.
    `init_text`: real words whose activations the prefix starts as (section 7.4); None starts at random.
    `epochs` counts unless `max_steps` is given. `eval_every` None is once an epoch. `patience`: how many evaluations
    without a better dev loss end the run; None never does. `checkpoint_every` is in steps.
    """

    num_virtual_tokens: int = 10
    mlp_width: int = 512
    init_text: str | None = None
    prompt_template: str = PAPER_TEMPLATE
    optimizer: str = "adamw"
    learning_rate: float = 5e-5
    batch_size: int = 10
    epochs: int = 5
    max_steps: int | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    patience: int | None = None
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_virtual_tokens", "batch_size", "epochs", "max_steps", "eval_every", "patience"):
            self._at_least(name, 1)
        for name in ("mlp_width", "warmup_steps", "weight_decay", "seed"):
            self._at_least(name, 0)
        if self.seed >= 2**64:
            raise BadSettings(f"seed is {self.seed}; expected less than 2^64")
        self._at_least("checkpoint_every", 1)
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise BadSettings(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.optimizer not in OPTIMIZERS:
            raise BadSettings(f"no optimizer {self.optimizer!r}; there are {', '.join(OPTIMIZERS)}")
        if self.prompt_template.count(PLACE) != 1:
            raise BadSettings(f"the prompt template is {self.prompt_template!r}; expected exactly one {PLACE} in it")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:  # nor NaN
            raise BadSettings(f"{name} is {value}; expected at least {least}")


# Li & Liang 2021; the low-data warm-up and steps are the defaults of the authors' code.
PRESETS: dict[str, dict[str, object]] = {
    "e2e": {"learning_rate": 8e-5, "epochs": 5, "batch_size": 10, "num_virtual_tokens": 5},
    "webnlg": {"learning_rate": 5e-5, "epochs": 5, "batch_size": 5, "num_virtual_tokens": 5},
    "dart": {"learning_rate": 5e-5, "epochs": 10, "batch_size": 5, "num_virtual_tokens": 10},
    "low-data": {
        "learning_rate": 5e-5,
        "max_steps": 400,
        "warmup_steps": 100,
        "batch_size": 10,
        "num_virtual_tokens": 6,
        "init_text": "table-to-text:",
        "eval_every": 50,
    },
}


def make_settings(preset: str | None, given: Mapping[str, object]) -> Settings:
    """The preset's numbers with what was `given` in their place; a None counts as not given. Given epochs count though
    the preset has steps. Raises `BadSettings`."""
    if preset is not None and preset not in PRESETS:
        raise BadSettings(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    known = {field.name: field for field in dataclasses.fields(Settings)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise BadSettings(f"no setting {', '.join(unknown)}; there are {', '.join(known)}")
    told = {name: value for name, value in given.items() if value is not None}
    chosen = with_given(PRESETS.get(preset or "", {}), told)
    for name, value in chosen.items():
        _check_type(name, value)
    return Settings(**chosen)  # type: ignore[arg-type]  # checked one line above


def with_given(usual: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """`usual` with `given` in its place: epochs that are given also take the place of usual steps."""
    instead = {"max_steps"} if "epochs" in given else set()
    return {name: value for name, value in usual.items() if name not in instead} | dict(given)


def check_dev_settings(given: Mapping[str, object], valid: object) -> None:
    """Raises `BadSettings` for what was given of dev losses where there is no dev set, `valid`, to take them on."""
    for name in ("eval_every", "patience"):
        if valid is None and given.get(name) is not None:
            raise BadSettings(
                f"{name} is {given[name]}, but there is no dev set; give one (valid), or leave {name} out"
            )


def _check_type(name: str, value: object) -> None:
    texts, reals = {"init_text", "prompt_template", "optimizer"}, {"learning_rate", "weight_decay", "max_grad_norm"}
    expected: type | tuple[type, ...] = str if name in texts else (int, float) if name in reals else int
    if not isinstance(value, expected) or isinstance(value, bool):
        kind = "text" if name in texts else "a number" if name in reals else "a whole number"
        raise BadSettings(f"{name} is {value!r}; expected {kind}")
    if isinstance(value, str) and not is_unicode(value):
        raise BadSettings(f"{name} is {value!a}; expected Unicode text")
