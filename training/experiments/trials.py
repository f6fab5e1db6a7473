"""One trial: tune one thing in one way on one problem, and score what came of it.

Knows a loaded backbone and a folder of data. Knows nothing of other trials or of where results are kept.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from training.backbone import FrozenBackbone
from training.encoding import Batch, Pair, encode
from training.examples import Example
from training.experiments.decoding import ROWS_AT_ONCE, search
from training.experiments.methods import METHODS, Bare, Method
from training.experiments.problems import PROBLEMS
from training.experiments.scales import EXAMPLES, Scale
from training.settings import PLACE, Settings
from training.task_training import TaskTraining
from training.train import train_together

Item = TypeVar("Item")

PATIENCE = 3  # dev losses
NUM_WORKED = 3  # examples before the input of a backbone that is not tuned


@dataclass(frozen=True, slots=True)
class Trial:
    """What distinguishes one run of an experiment from another. None: as the scale has it.

    `method` is one of `METHODS`, or `bare`: nothing tuned, three worked examples before the input. `subset` draws the
    `num_pairs` training pairs, `seed` the start and the order.
    """

    problem: str
    method: str
    learning_rate: float = 5e-5
    seed: int = 0
    num_virtual_tokens: int | None = None
    mlp_width: int | None = None
    init_text: str | None = None
    num_pairs: int | None = None
    subset: int = 0
    max_steps: int | None = None
    optimizer: str | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a trial made: the tensor that outlives it, and how it went."""

    tensor: Tensor
    num_steps: int
    best_step: int
    dev_loss: float
    dev_losses: list[tuple[int, float]]
    seconds: float


def tune(trial: Trial, scale: Scale, backbone: FrozenBackbone, data: Path) -> Tuned:
    problem, settings = PROBLEMS[trial.problem], settings_of(trial, scale)
    pairs = encode(problem.read_train(data), backbone, settings.prompt_template, settings.num_virtual_tokens)
    train = replace(pairs, pairs=drawn(pairs.pairs, trial.num_pairs or scale.num_pairs, trial.subset))
    if trial.method == "bare":
        worked = drawn(train.pairs, NUM_WORKED, trial.subset) if scale.num_pairs is None else train.pairs[:NUM_WORKED]
        return Tuned(torch.tensor(tokens_of(worked)), 0, 0, math.nan, [], 0.0)
    if settings.init_text == EXAMPLES:
        first = tokens_of(train.pairs)[: settings.num_virtual_tokens]
        settings = replace(settings, init_text=backbone.tokenizer.decode(first))
    pairs = encode(problem.read_dev(data), backbone, settings.prompt_template, settings.num_virtual_tokens)
    dev = replace(pairs, pairs=drawn(pairs.pairs, scale.num_dev_pairs))
    num_steps = settings.max_steps or settings.epochs * math.ceil(len(train.pairs) / settings.batch_size)
    settings = replace(settings, eval_every=max(1, num_steps // scale.evaluations))
    training = TaskTraining(trial.problem, METHODS[trial.method](backbone, settings), settings, train, dev)
    train_together(backbone, [training], Silence(), losses_of=losses_of_one)
    progress = training.progress
    return Tuned(
        training.result,
        progress.step,
        progress.best_step,
        progress.best_dev_loss,
        progress.dev_losses,
        progress.seconds,
    )


def answers(
    trial: Trial, tuned: Tensor, examples: Sequence[Example], scale: Scale, backbone: FrozenBackbone, num_beams: int
) -> list[str]:
    """What the tuned model says to each input, by beam search (1: greedy)."""
    settings = replace(settings_of(trial, scale), init_text=None)  # what was tuned takes the start's place
    method = loaded(trial, tuned, settings, backbone)
    prompts = [backbone.token_ids(settings.prompt_template.replace(PLACE, example.inputs)) for example in examples]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    said = [""] * len(prompts)
    end: int = backbone.tokenizer.eos_token_id
    for first in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[first : first + ROWS_AT_ONCE]
        start = method.start([prompts[index] for index in chosen])
        found = search(start, end, num_beams, PROBLEMS[trial.problem].max_new_tokens)
        for index, ids in zip(chosen, found, strict=True):
            said[index] = backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return said


def loaded(trial: Trial, tuned: Tensor, settings: Settings, backbone: FrozenBackbone) -> Method | Bare:
    if trial.method == "bare":
        return Bare(backbone, tuned, PROBLEMS[trial.problem].max_new_tokens)
    method = METHODS[trial.method](backbone, settings)
    method.load(tuned)
    return method


def tokens_of(pairs: Sequence[Pair]) -> list[int]:
    """Examples with their answers, one after another."""
    return [token for pair in pairs for token in (*pair.prompt, *pair.answer)]


def settings_of(trial: Trial, scale: Scale) -> Settings:
    def chosen(given: Item | None, otherwise: Item) -> Item:
        return otherwise if given is None else given

    return Settings(
        num_virtual_tokens=chosen(trial.num_virtual_tokens, scale.num_virtual_tokens),
        mlp_width=chosen(trial.mlp_width, scale.mlp_width),
        init_text=chosen(trial.init_text, scale.init_text) or None,
        prompt_template=scale.prompt_template,
        optimizer=chosen(trial.optimizer, "adamw"),
        learning_rate=trial.learning_rate,
        batch_size=scale.batch_size[trial.problem],
        epochs=chosen(trial.epochs, scale.epochs[trial.problem]),
        max_steps=trial.max_steps,
        patience=PATIENCE,
        seed=trial.seed,
    )


def drawn(everything: Sequence[Item], number: int | None, seed: int = 0) -> tuple[Item, ...]:
    """So many of them at random, the same for every method; None: all."""
    if number is None or number >= len(everything):
        return tuple(everything)
    return tuple(random.Random(seed).sample(everything, number))


def losses_of_one(
    backbone: FrozenBackbone, tuned: Sequence[torch.nn.Module], owners: Sequence[int], batch: Batch
) -> Tensor:
    (method,) = tuned
    assert isinstance(method, Method)
    return method.losses(batch)[None]


class Silence:
    """Hears of a training and says nothing."""

    def stepped(self, training: TaskTraining) -> None: ...

    def evaluated(self, training: TaskTraining) -> None: ...

    def finished(self, training: TaskTraining) -> None: ...

    def diverged(self, training: TaskTraining) -> None: ...  # a rate that is too high has a score too
