"""A bar for what `map` has answered, on a terminal's standard error; nothing anywhere else.

Knows rich. Knows nothing of calls.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(inputs: Iterable[str], *, shown: bool) -> Iterator[Callable[[], None]]:
    """Gives the function to call after each answer. Where nobody knows how many inputs there are, it only counts."""
    console = Console(stderr=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        row = bar.add_task("answered", total=length_hint(inputs) or None)
        yield lambda: bar.advance(row)
