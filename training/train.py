"""Trains one task or many over one frozen backbone; rows of different tasks share forward and backward passes.

Knows when to step, to evaluate and to stop. Knows nothing of files: whoever calls listens through `Listener`. A task's
gradients are those it would have alone, since no row's loss depends on another row and every task has its own loss,
clipping and optimizer; training one task is training many of which there is one.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from training.backbone import FrozenBackbone
from training.encoding import Batch, Pair, pad
from training.prefix_tuning import losses
from training.task_training import TaskTraining

DEFAULT_ROWS_PER_PASS = 32

# The loss of a batch whose row b belongs to tuned module owners[b]: the sum over each module's answer tokens, [modules]
Losses = Callable[[FrozenBackbone, Sequence[torch.nn.Module], Sequence[int], Batch], torch.Tensor]


def losses_under_prefixes(
    backbone: FrozenBackbone, tuned: Sequence[torch.nn.Module], owners: Sequence[int], batch: Batch
) -> torch.Tensor:
    return losses(backbone, [prefix() for prefix in tuned], owners, batch)


class Listener(Protocol):
    """Hears of each task's steps; a method returns before training goes on. The last is `finished` or `diverged`."""

    def stepped(self, training: TaskTraining) -> None: ...

    def evaluated(self, training: TaskTraining) -> None: ...

    def finished(self, training: TaskTraining) -> None: ...

    def diverged(self, training: TaskTraining) -> None: ...


def train_together(
    backbone: FrozenBackbone,
    trainings: Sequence[TaskTraining],
    listener: Listener,
    rows_per_pass: int = DEFAULT_ROWS_PER_PASS,
    losses_of: Losses = losses_under_prefixes,
) -> None:
    """Train every task to its end, or until it diverges; the others go on. A pass holds at most `rows_per_pass` rows;
    a step that has more accumulates."""
    active = list(trainings)
    while active:
        for training in [training for training in active if training.is_done]:
            active.remove(training)
            if training.diverged:
                listener.diverged(training)
            else:
                listener.finished(training)
        if active:
            run_step(backbone, active, rows_per_pass, losses_of)
        for training in [training for training in active if training.loss_is_finite]:
            if training.is_to_be_evaluated:
                training.take_dev_loss(dev_loss(backbone, training, rows_per_pass, losses_of))
                listener.evaluated(training)
            listener.stepped(training)


def run_step(
    backbone: FrozenBackbone,
    trainings: Sequence[TaskTraining],
    rows_per_pass: int,
    losses_of: Losses = losses_under_prefixes,
) -> None:
    """One update of every task. A task's loss is the mean over all answer tokens of its rows in this step."""
    started = time.perf_counter()
    rows = [(owner, pair) for owner, training in enumerate(trainings) for pair in training.next_pairs()]
    num_answer_tokens = [0] * len(trainings)
    for owner, pair in rows:
        num_answer_tokens[owner] += len(pair.answer)
    weights = 1 / torch.tensor(num_answer_tokens, dtype=torch.float32, device=backbone.device)
    sums = torch.zeros(len(trainings), device=backbone.device)
    rows.sort(key=lambda row: row[1].num_tokens)  # rows of like length together: less padding
    for start in range(0, len(rows), rows_per_pass):
        sums += accumulate(backbone, trainings, rows[start : start + rows_per_pass], weights, losses_of)
    for training, mean in zip(trainings, (sums * weights).tolist(), strict=True):
        training.update(mean)
    seconds = time.perf_counter() - started
    for training in trainings:
        training.progress.seconds += seconds
    for owner, pair in rows:
        trainings[owner].progress.num_tokens += pair.num_tokens


def accumulate(
    backbone: FrozenBackbone,
    trainings: Sequence[TaskTraining],
    rows: Sequence[tuple[int, Pair]],
    weights: torch.Tensor,
    losses_of: Losses = losses_under_prefixes,
) -> torch.Tensor:
    """Add the gradients of one pass; returns each task's sum of losses, `[len(trainings)]`."""
    present = sorted({owner for owner, _ in rows})
    places = {owner: place for place, owner in enumerate(present)}
    batch = pad([pair for _, pair in rows], backbone.device)
    tuned = [trainings[owner].tuned for owner in present]
    found = losses_of(backbone, tuned, [places[owner] for owner, _ in rows], batch)
    torch.autograd.backward((found * weights[present]).sum())
    return torch.zeros_like(weights).index_copy(0, torch.tensor(present, device=weights.device), found.detach())


@torch.no_grad()
def dev_loss(
    backbone: FrozenBackbone,
    training: TaskTraining,
    rows_per_pass: int,
    losses_of: Losses = losses_under_prefixes,
) -> float:
    """The mean cross-entropy of an answer token over the whole dev set."""
    assert training.dev is not None
    pairs = sorted(training.dev.pairs, key=lambda pair: pair.num_tokens)
    total = 0.0
    for start in range(0, len(pairs), rows_per_pass):
        rows = pairs[start : start + rows_per_pass]
        total += losses_of(backbone, [training.tuned], [0] * len(rows), pad(rows, backbone.device)).item()
    return total / sum(len(pair.answer) for pair in pairs)
