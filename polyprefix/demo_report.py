"""What the demo prints: one line per row with its life in steps, and who shared a forward pass with whom.

Knows rich's tables. Knows nothing of servers.
"""

import math
from collections.abc import Sequence
from itertools import cycle

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from polyprefix.demo_burst import Row, sharing, steps_of

PICTURE_COLUMNS = 16
MAX_INPUT_CHARACTERS = 100
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white")


def report(rows: Sequence[Row], num_mixed_steps: int) -> Group:
    return Group(row_table(rows), Text(shared_steps(rows, num_mixed_steps), style="bold"))


def row_table(rows: Sequence[Row]) -> Table:
    """Sorted by task; the bars stand under one another, so that a column is a moment and shows who was in it."""
    table = Table(title="One burst, all at once: each bar is a row's life in the batch, step by step", box=SIMPLE_HEAD)
    table.add_column("task", no_wrap=True)
    table.add_column("input, answer", ratio=1)
    table.add_column("tokens", justify="right")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=PICTURE_COLUMNS)
    colours = dict(zip(sorted({row.task_id for row in rows}), cycle(COLOURS), strict=False))
    all_steps = steps_of(rows)
    for row in sorted(rows, key=lambda row: row.task_id):
        table.add_row(
            Text(row.task_id, style=colours[row.task_id]),
            Text.assemble((shortened(row.inputs), "dim"), "\n", row.answer.strip()),
            str(row.num_tokens),
            f"{row.first_step}–{row.last_step}",
            Text(bar(row.steps, all_steps), style=colours[row.task_id]),
        )
    return table


def shortened(text: str) -> str:
    return text if len(text) <= MAX_INPUT_CHARACTERS else f"{text[: MAX_INPUT_CHARACTERS - 1]}…"


def bar(steps: range, all_steps: range) -> str:
    """`steps` drawn in `PICTURE_COLUMNS` columns that stand for `all_steps`."""
    first = (steps.start - all_steps.start) * PICTURE_COLUMNS // len(all_steps)
    end = math.ceil((steps.stop - all_steps.start) * PICTURE_COLUMNS / len(all_steps))
    return " " * first + "█" * (end - first)


def shared_steps(rows: Sequence[Row], num_mixed_steps: int) -> str:
    steps = sharing(rows)
    mixed = [step for step in steps if step.num_tasks > 1]
    busiest = max(steps, key=lambda step: (step.num_tasks, step.num_rows))
    return (
        f"{len(mixed)} of {len(steps)} steps held rows of several tasks; "
        f"step {busiest.step} held {busiest.num_rows} rows of {busiest.num_tasks} tasks at once. "
        f"The server's own count of steps that mixed tasks: {num_mixed_steps}."
    )


def comparison(together: Sequence[Row], alone: Sequence[Row]) -> str:
    """Which answers changed with the company that a row was in; none should."""
    different = [pair for pair in zip(together, alone, strict=True) if pair[0].answer != pair[1].answer]
    lines = [f"{len(together) - len(different)} of {len(together)} answers are the same as when asked alone."]
    for crowded, single in different:
        lines.append(f"{crowded.task_id} {crowded.inputs!r}: together {crowded.answer!r}, alone {single.answer!r}")
    return "\n".join(lines)
