"""The commands that make and judge prefixes: `polyprefix train`, `train-many`, `evaluate`, `convert`.

Knows terminals. Each command is a plain function with typer's annotations; what it does is the other files'.
"""

import asyncio
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clients.client import DEFAULT_URL, AsyncClient, Client
from clients.errors import PolyprefixError
from clients.retries import Retries
from prefix_store.errors import InvalidPrefix, InvalidTaskId
from prefix_store.names import check_new_task_id
from training.backbone import FrozenBackbone, load_backbone
from training.coco import check_available
from training.convert import FORMS
from training.convert import convert as convert_file
from training.errors import TrainingError
from training.evaluate import SCORING_OF_FORMAT, SCORINGS, Answers, Report, TestSet, ask, score
from training.examples import FORMAT_NAMES, guess_format, read_examples
from training.jobs import choose_format, read_jobs
from training.progress_bar import ProgressBar
from training.run import Job, run_jobs
from training.settings import OPTIMIZERS, PRESETS, check_dev_settings, make_settings
from training.train import DEFAULT_ROWS_PER_PASS

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")]
Model = Annotated[str, typer.Option(help="The backbone: a folder or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Precision = Annotated[str, typer.Option(help="auto (bfloat16 where the device has it), float32 or bfloat16.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")]
RowsPerPass = Annotated[int, typer.Option(min=1, help="Rows in one pass; a step with more of them accumulates.")]
Upload = Annotated[str | None, typer.Option(metavar="URL", help="Upload to the server there, template included.")]
ApiKey = Annotated[str | None, typer.Option(envvar="POLYPREFIX_API_KEY", help="The tenant's key.")]
Format = Annotated[
    str | None, typer.Option("--format", help=f"{', '.join(FORMAT_NAMES)}; told by the name if not given.")
]


def train(
    task: TaskId,
    model: Model,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Training examples.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The prefix; all else goes to a folder of its name, .run.")],
    valid: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Examples for the dev loss.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"The paper's numbers: {', '.join(PRESETS)}.")] = None,
    format_name: Format = None,
    upload: Upload = None,
    api_key: ApiKey = None,
    resume: Resume = False,
    num_virtual_tokens: Annotated[int | None, typer.Option(help="The prefix's length.")] = None,
    mlp_width: Annotated[int | None, typer.Option(help="Hidden units of the reparametrisation; 0 is none.")] = None,
    init_text: Annotated[str | None, typer.Option(help="Start as these words' activations.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help="One {inputs} in it.")] = None,
    optimizer: Annotated[str | None, typer.Option(help=" or ".join(OPTIMIZERS))] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in one step.")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    max_steps: Annotated[int | None, typer.Option(help="Instead of epochs.")] = None,
    warmup_steps: Annotated[int | None, typer.Option()] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between dev losses; an epoch if not given.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many dev losses without a better one.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    rows_per_pass: RowsPerPass = DEFAULT_ROWS_PER_PASS,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Tune a prefix for TASK on a frozen backbone."""
    given = {
        "num_virtual_tokens": num_virtual_tokens,
        "mlp_width": mlp_width,
        "init_text": init_text,
        "prompt_template": prompt_template,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "epochs": epochs,
        "max_steps": max_steps,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "eval_every": eval_every,
        "patience": patience,
        "checkpoint_every": checkpoint_every,
        "seed": seed,
    }
    with told_errors():
        settings = make_settings(preset, given)
        check_dev_settings(given, valid)
        job = Job(task, data, format_name or choose_format(preset, data), valid, out, settings)
        train_jobs([job], load_backbone(model, device, precision), upload, api_key, resume, rows_per_pass)


def train_many(
    tasks_file: Annotated[Path, typer.Argument(metavar="TASKS.TOML", exists=True, dir_okay=False)],
    model: Model,
    upload: Upload = None,
    api_key: ApiKey = None,
    resume: Resume = False,
    rows_per_pass: RowsPerPass = DEFAULT_ROWS_PER_PASS,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Tune a prefix for each of many tasks over one backbone, their rows in the same passes."""
    with told_errors():
        jobs = read_jobs(tasks_file)
        train_jobs(jobs, load_backbone(model, device, precision), upload, api_key, resume, rows_per_pass)


def evaluate(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK…", help="Served tasks, asked at the same time.")],
    data: Annotated[list[Path], typer.Option(exists=True, dir_okay=False, help="A test set for each, in order.")],
    url: Annotated[str, typer.Option(envvar="POLYPREFIX_URL", help="Where the server answers.")] = DEFAULT_URL,
    api_key: ApiKey = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help=f"One for all or one for each: {', '.join(FORMAT_NAMES)}.")
    ] = None,
    scoring: Annotated[str | None, typer.Option(help=f"BLEU as for {' or '.join(SCORINGS)}; by format.")] = None,
    num_beams: Annotated[int | None, typer.Option(help="The paper has 5 for table-to-text.")] = None,
    length_penalty: Annotated[float | None, typer.Option()] = None,
    max_new_tokens: Annotated[int | None, typer.Option()] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many inputs of each set.")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="METEOR and CIDEr as well; needs Java.")] = False,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write scores and answers there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Score served tasks on test sets."""
    parameters = {"num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
    given = {name: value for name, value in parameters.items() if value is not None}
    with told_errors():
        if metrics:
            check_available()
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)  # rather now than when everything was asked
        test_sets = read_test_sets(tasks, data, formats or [], scoring, limit)
        answers = asyncio.run(ask_server(url, api_key, test_sets, concurrency, given))
        reports = [score(*both, with_coco=metrics) for both in zip(test_sets, answers, strict=True)]
    if as_json:
        typer.echo(json.dumps([report.to_json() for report in reports], ensure_ascii=False))
    else:
        print_whole(report_table(reports))
    with told_errors():
        if out is not None:
            write_reports(out, given, test_sets, answers, reports)
        check_failures(test_sets, answers)


def convert(
    source: Annotated[
        Path, typer.Argument(exists=True, help="A file or folder of ours, PEFT's or the original code's.")
    ],
    out: Annotated[Path, typer.Argument(help="A file for native, a folder for peft and original.")],
    form: Annotated[str, typer.Option("--to", help=", ".join(FORMS))] = "native",
    model: Annotated[str | None, typer.Option(help="The backbone, where the source does not tell its shape.")] = None,
    task_index: Annotated[int | None, typer.Option(min=0, help="Which task of PEFT's multitask prompt tuning.")] = None,
) -> None:
    """Turn a prefix of any known kind into ours, PEFT's or the original code's."""
    with told_errors():
        written = convert_file(source, out, form, model, task_index)
    typer.echo(f"{out}: {form}, {written.prompt.num_virtual_tokens} virtual tokens")


def train_jobs(
    jobs: Sequence[Job],
    backbone: FrozenBackbone,
    url: str | None,
    api_key: str | None,
    resume: bool,
    rows_per_pass: int,
) -> None:
    if url is not None:
        check_upload(jobs, backbone, url, api_key)
    run_jobs(jobs, backbone, ProgressBar(Console(stderr=True)), resume, rows_per_pass)
    for job in jobs:
        typer.echo(f"{job.task_id}: {job.out}")
    if url is not None:
        upload_prefixes(jobs, url, api_key)


def check_upload(jobs: Sequence[Job], backbone: FrozenBackbone, url: str, api_key: str | None) -> None:
    """Ask the server before any training whether it knows the key and has this backbone, and whether the tasks may have
    their names."""
    with Client(url, api_key=api_key) as client:
        client.tasks(limit=1)
        served = client.info()
    if served.fingerprint != backbone.fingerprint:
        raise TrainingError(
            f"{url} serves {served.backbone} with the fingerprint {served.fingerprint[:12]}…, and --model has "
            f"{backbone.fingerprint[:12]}…; train on the weights that are served, or leave --upload out"
        )
    for job in jobs:
        check_new_task_id(job.task_id, served.backbone)


def upload_prefixes(jobs: Sequence[Job], url: str, api_key: str | None) -> None:
    """Each prefix as its task's next version, and the template that it was trained with as the task's own. A task that
    is there gets both at once; a new one serves its first version as soon as it has it."""
    with Client(url, api_key=api_key) as client:
        for job in jobs:
            version = client.upload(job.task_id, job.out, serve=False).version.version
            client.use_version(job.task_id, version, prompt_template=job.settings.prompt_template)
            typer.echo(f"{job.task_id}: version {version} at {url}")


def read_test_sets(
    tasks: Sequence[str], data: Sequence[Path], formats: Sequence[str], scoring: str | None, limit: int | None
) -> list[TestSet]:
    if len(tasks) != len(data):
        raise TrainingError(f"{len(tasks)} tasks and {len(data)} test sets; expected one --data for each task")
    if scoring is not None and scoring not in SCORINGS:
        raise TrainingError(f"no scoring {scoring!r}; there are {', '.join(SCORINGS)}")
    if len(formats) not in (0, 1, len(data)):
        raise TrainingError(f"{len(formats)} formats and {len(data)} test sets; expected one for all or one for each")
    chosen = (
        formats if len(formats) == len(data) else list(formats) * len(data) or [guess_format(path) for path in data]
    )
    test_sets = []
    for task_id, path, form in zip(tasks, data, chosen, strict=True):
        examples = read_examples(path, form)[:limit]
        test_sets.append(TestSet(task_id, examples, scoring or SCORING_OF_FORMAT.get(form, "e2e")))
    return test_sets


async def ask_server(
    url: str, api_key: str | None, test_sets: Sequence[TestSet], concurrency: int, parameters: dict[str, Any]
) -> list[Answers]:
    # Its own requests may bring it to its tenant's limit of a minute; nobody waits for one of these answers.
    patient = Retries(max_retries=20, max_wait=600.0)
    async with AsyncClient(url, api_key=api_key, retries=patient) as client:
        return await ask(client, test_sets, concurrency, parameters)


def write_reports(
    out: Path,
    parameters: dict[str, Any],
    test_sets: Sequence[TestSet],
    answers: Sequence[Answers],
    reports: Sequence[Report],
) -> None:
    tasks = [
        report.to_json()
        | {
            "answers": [
                {**dataclasses.asdict(example), "answer": text}
                | ({"error": answered.failures[place]} if place in answered.failures else {})
                for place, (example, text) in enumerate(zip(test_set.examples, answered.texts, strict=True))
            ]
        }
        for test_set, answered, report in zip(test_sets, answers, reports, strict=True)
    ]
    content = {"parameters": parameters, "tasks": tasks}
    out.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_failures(test_sets: Sequence[TestSet], answers: Sequence[Answers]) -> None:
    """Raises `TrainingError`, which tells the first input that failed."""
    for test_set, answered in zip(test_sets, answers, strict=True):
        for place, reason in answered.failures.items():
            raise TrainingError(
                f"{len(answered.failures)} inputs of {test_set.task_id} failed and count as empty answers; the first, "
                f"{test_set.examples[place].inputs[:64]!r}: {reason}"
            )


def report_table(reports: Sequence[Report]) -> Table:
    extra = list(reports[0].extra)
    table = Table("task", "version", "inputs", "references", "cut", "failed", "BLEU", "ROUGE-L", "NIST", *extra)
    for report in reports:
        numbers = [f"{report.bleu:.2f}", f"{report.rouge_l:.4f}", f"{report.nist:.4f}"]
        more = [f"{report.extra[name]:.4f}" for name in extra]
        version = "–" if report.version is None else str(report.version)
        counts = (report.num_inputs, report.num_references, report.num_cut, report.num_failed)
        table.add_row(report.task_id, version, *map(str, counts), *numbers, *more)
    return table


def print_whole(table: Table) -> None:
    """As wide as it is: rather lines that the terminal folds than numbers that are cut."""
    console = Console()
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)
    console.print(table)


@contextmanager
def told_errors() -> Iterator[None]:
    """The user's mistakes, the server's refusals and what files refuse become one line on standard error and exit
    status 1."""
    try:
        yield
    except (TrainingError, InvalidPrefix, InvalidTaskId, PolyprefixError, OSError) as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
