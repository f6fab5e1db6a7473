"""Shows how training goes: a bar per task on a terminal, a line per evaluation elsewhere.

Knows rich. Knows nothing of training beyond each task's `Progress`.
"""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from training.task_training import TaskTraining


class ProgressBar:
    """A context manager; `show` after each step, `note` at each evaluation, `tell` for what else is to be known."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._rich = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  dev {task.fields[dev]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def show(self, training: TaskTraining) -> None:
        progress = training.progress
        if training.task_id not in self._bars:
            self._bars[training.task_id] = self._rich.add_task(
                training.task_id, total=training.num_steps, completed=progress.step - 1, **fields(training)
            )
        self._rich.update(self._bars[training.task_id], completed=progress.step, **fields(training))

    def note(self, training: TaskTraining) -> None:
        if not self._console.is_terminal:
            told = fields(training)
            self.tell(
                f"{training.task_id}: step {training.progress.step} of {training.num_steps}, "
                f"loss {told['loss']:.4f}, dev loss {told['dev']:.4f}, {told['speed']:,.0f} tokens/s"
            )

    def tell(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()


def fields(training: TaskTraining) -> dict[str, Any]:
    """The mean loss of the last twenty steps, the last dev loss (NaN before the first), tokens a second."""
    progress = training.progress
    recent = [loss for _, loss in progress.train_losses[-20:]]
    return {
        "loss": sum(recent) / len(recent) if recent else float("nan"),
        "dev": progress.dev_losses[-1][1] if progress.dev_losses else float("nan"),
        "speed": progress.tokens_per_second,
    }
