"""What the demo says of shared steps, from rows that are written by hand."""

from pathlib import Path

from rich.console import Console

from polyprefix.demo import NUM_EXAMPLES
from polyprefix.demo_burst import Row, Sharing, mixed, sharing
from polyprefix.demo_report import PICTURE_COLUMNS, bar, comparison, report
from polyprefix.demo_tasks import PLAIN_TEXT_TASKS, embedded_tasks

POET = Row("poet", "the sea", " is wide", num_tokens=3, first_step=1, last_step=3)
CLERK = Row("clerk", "dear sir", " or madam", num_tokens=2, first_step=3, last_step=4)


def test_a_step_counts_the_rows_and_the_tasks_that_it_held():
    second_poet = Row("poet", "rain", " falls", 1, 3, 3)
    assert sharing([POET, CLERK, second_poet]) == [
        Sharing(1, num_rows=1, num_tasks=1),
        Sharing(2, num_rows=1, num_tasks=1),
        Sharing(3, num_rows=3, num_tasks=2),
        Sharing(4, num_rows=1, num_tasks=1),
    ]


def test_rows_that_shared_a_step_have_bars_that_overlap():
    all_steps = range(1, 5)
    poet, clerk = bar(POET.steps, all_steps), bar(CLERK.steps, all_steps)
    both = [i for i in range(PICTURE_COLUMNS) if poet[i : i + 1] == clerk[i : i + 1] == "█"]
    assert len(both) == PICTURE_COLUMNS // 4
    assert len(clerk) == PICTURE_COLUMNS


def test_a_bar_fits_its_column_however_many_steps_there_are():
    for num_steps in (1, 2, 7, 1000):
        for step in range(num_steps):
            assert 1 <= len(bar(range(step, step + 1), range(num_steps))) <= PICTURE_COLUMNS


def test_the_report_shows_each_row_and_the_busiest_step():
    console = Console(width=140)
    with console.capture() as captured:
        console.print(report([POET, CLERK], num_mixed_steps=1))
    printed = captured.get()
    for part in ("poet", "is wide", "1–3", "clerk", "1 of 4 steps", "step 3 held 2 rows of 2 tasks", "mixed tasks: 1"):
        assert part in printed


def test_an_answer_that_changed_with_its_company_is_shown_with_both_texts():
    changed = Row("clerk", "dear sir", " or else", 2, 8, 9)
    assert comparison([POET, CLERK], [POET, CLERK]).startswith("2 of 2 answers are the same")
    assert comparison([POET, CLERK], [POET, changed]).splitlines() == [
        "1 of 2 answers are the same as when asked alone.",
        "clerk 'dear sir': together ' or madam', alone ' or else'",
    ]


def test_the_burst_goes_round_the_tasks():
    asks = mixed(PLAIN_TEXT_TASKS, 2)
    assert len({ask.task_id for ask in asks[:7]}) == 7
    assert [ask.task_id for ask in asks[:7]] == [ask.task_id for ask in asks[7:]]
    assert asks[0].inputs != asks[7].inputs


def test_each_embedded_task_has_its_prefix_and_examples_for_the_burst():
    tasks = embedded_tasks()
    assert len(tasks) >= 7
    for task in tasks:
        assert isinstance(task.prefix, Path)
        assert task.prefix.is_file()
        assert len(task.examples) >= NUM_EXAMPLES
