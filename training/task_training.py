"""One task in training: its data, what is tuned for it, its optimizer, and how far it is.

Knows one task. Knows nothing of the others that may share its forward passes, nor of files, nor of how a loss is made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.checkpoint import State
from training.encoding import Encoded, Pair, shuffled
from training.optimizers import optimizers_of
from training.settings import Settings


@dataclass(slots=True)
class Progress:
    """How far a run is, and how it went; all of it numbers, so that a checkpoint can hold it.

    `train_losses` and `dev_losses` are (step, mean cross-entropy of an answer token). `worse_evaluations` counts those
    since the best one. `seconds` and `num_tokens` (prompts and answers) are of training alone, without evaluation.
    """

    step: int = 0
    train_losses: list[tuple[int, float]] = field(default_factory=list)
    dev_losses: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_dev_loss: float = math.inf
    worse_evaluations: int = 0
    seconds: float = 0.0
    num_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


class TaskTraining:
    """`next_pairs` gives a step's rows, whoever runs them accumulates their gradients, `update` ends the step.

    `tuned` is the module that is trained; called without arguments it gives the one tensor that outlives the training.
    """

    def __init__(
        self, task_id: str, tuned: torch.nn.Module, settings: Settings, train: Encoded, dev: Encoded | None
    ) -> None:
        self.task_id = task_id
        self.settings = settings
        self.train = train
        self.dev = dev
        self.tuned = tuned
        self.progress = Progress()
        self._best: Tensor | None = None
        self._parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        self._optimizers = optimizers_of(settings.optimizer, tuned, settings.learning_rate, settings.weight_decay)
        self._epoch: tuple[int, list[list[Pair]]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train.pairs) / self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        return self.settings.max_steps or self.settings.epochs * self.steps_per_epoch

    @property
    def stopped_early(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress.worse_evaluations >= patience

    @property
    def loss_is_finite(self) -> bool:
        """Whether the last step's is; once it is not, no later one is."""
        return all(math.isfinite(loss) for _, loss in self.progress.train_losses[-1:])

    @property
    def dev_loss_is_finite(self) -> bool:
        """Whether the last one is, where there are any."""
        return all(math.isfinite(loss) for _, loss in self.progress.dev_losses[-1:])

    @property
    def diverged(self) -> bool:
        """Whether it ended in what is no finite number: its last loss, its last dev loss, or the result itself.

        A good dev loss before that changes nothing: who asks for a rate that high is told, and not given the half.
        """
        return not (self.loss_is_finite and self.dev_loss_is_finite and self.result.isfinite().all())

    @property
    def is_done(self) -> bool:
        return self.progress.step >= self.num_steps or self.stopped_early or not self.loss_is_finite

    @property
    def is_to_be_evaluated(self) -> bool:
        """Whether the step that just ended calls for a dev loss; the last one always does."""
        every = self.settings.eval_every or self.steps_per_epoch
        return self.dev is not None and (self.progress.step % every == 0 or self.progress.step == self.num_steps)

    @property
    def learning_rate(self) -> float:
        """That of the next step: linearly up over the warm-up, then linearly down to zero."""
        step, warmup, peak = self.progress.step, self.settings.warmup_steps, self.settings.learning_rate
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return peak * (self.num_steps - step) / max(1, self.num_steps - warmup)

    def next_pairs(self) -> Sequence[Pair]:
        """The rows of the next step, a function of seed and step alone."""
        epoch, index = divmod(self.progress.step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            batches = shuffled(self.train.pairs, self.settings.batch_size, self.settings.seed, epoch)
            self._epoch = (epoch, batches)
        return self._epoch[1][index]

    def update(self, train_loss: float) -> None:
        """One step of the optimizer on the gradients that were accumulated, clipped to `max_grad_norm`."""
        torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.train_losses.append((self.progress.step, train_loss))

    def take_dev_loss(self, dev_loss: float) -> None:
        """Keep what was tuned if it is the best so far."""
        progress = self.progress
        progress.dev_losses.append((progress.step, dev_loss))
        if dev_loss < progress.best_dev_loss:
            progress.best_step, progress.best_dev_loss, progress.worse_evaluations = progress.step, dev_loss, 0
            self._best = self.current()
        else:
            progress.worse_evaluations += 1

    @torch.no_grad()
    def current(self) -> Tensor:
        """What is tuned as it is now, on the CPU; of a prefix its keys and values `[n_layer, 2, P, H, D]`."""
        tuned: Tensor = self.tuned()
        return tuned.detach().cpu().clone()

    @property
    def result(self) -> Tensor:
        """What was the best by dev loss; the last where there is no dev set."""
        return self.current() if self._best is None else self._best

    def state(self) -> State:
        progress = {name: getattr(self.progress, name) for name in Progress.__slots__}
        return {
            "tuned": self.tuned.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": progress,
            "best": self._best,
        }

    def load_state(self, state: State) -> None:
        self.tuned.load_state_dict(state["tuned"])
        for optimizer, optimizer_state in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.progress = Progress(**state["progress"])
        self._best = state["best"]
