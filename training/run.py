"""A run on disk: what it was made with, its checkpoints, and what it leaves behind.

Knows files and versions. For `prefixes/e2e.safetensors` everything else lies in `prefixes/e2e.run/`: `run.json`,
`losses.csv`, `loss.png`, `tensorboard/`, and `checkpoint.pt` until the run is finished.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefix_store.formats import dump
from prefix_store.names import is_task_id
from training.backbone import FrozenBackbone
from training.checkpoint import check_same_run, load_checkpoint, save_checkpoint, sha256_of, write_whole
from training.curves import EventLog, draw_curves, write_curves
from training.encoding import Encoded, encode
from training.errors import BadExamples, BadSettings, Diverged, OtherRun
from training.examples import files_of, read_examples, reader_of
from training.prefix_tuning import TunedPrefix
from training.progress_bar import ProgressBar
from training.settings import Settings
from training.task_training import TaskTraining
from training.train import DEFAULT_ROWS_PER_PASS, train_together


@dataclass(frozen=True, slots=True)
class Job:
    """One task to be trained: from which files, how, and where the prefix goes."""

    task_id: str
    data: Path
    format_name: str
    valid: Path | None
    out: Path
    settings: Settings

    def __post_init__(self) -> None:
        reader_of(self.format_name)  # an unknown format is told before anything is read
        if not is_task_id(self.task_id):
            raise BadSettings(f"{self.task_id!r} is no task id: expected letters, digits, '.', '_' and '-' alone")

    @property
    def example_files(self) -> tuple[Path, ...]:
        """All that the job reads."""
        sets = (self.data,) if self.valid is None else (self.data, self.valid)
        return tuple(file for path in sets for file in files_of(path, self.format_name))

    @property
    def folder(self) -> Path:
        """`e2e.run` for `e2e.safetensors`; the whole name of any other out, `e2e.v1.run` for `e2e.v1`."""
        return self.out.with_name(self.out.name.removesuffix(".safetensors") + ".run")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


class Run:
    """One job with its training; writes the checkpoints, and at the end the prefix and its record.

    Takes the job's folder: without `resume` what an earlier run left in it is removed.
    """

    def __init__(self, job: Job, training: TaskTraining, backbone: FrozenBackbone, resume: bool) -> None:
        self.job = job
        self.training = training
        self._backbone = backbone
        self._made_with = made_with(job, backbone)
        if resume:
            self._resume()
        else:
            remove_earlier(job.folder)
        self._events = EventLog(job.folder / "tensorboard", self.training.progress.step)

    def stepped(self) -> None:
        progress, settings = self.training.progress, self.job.settings
        step, loss = progress.train_losses[-1]
        self._events.add("loss/train", loss, step)
        if self.training.is_to_be_evaluated or step % settings.checkpoint_every == 0:
            save_checkpoint(self.job.checkpoint, {"made_with": self._made_with, **self.training.state()})

    def evaluated(self) -> None:
        step, loss = self.training.progress.dev_losses[-1]
        self._events.add("loss/dev", loss, step)

    def finished(self) -> None:
        """Write the prefix first: whatever happens after it, the work is not lost."""
        body = dump(self.training.result, self._metadata())
        write_whole(self.job.out, body)
        progress = self.training.progress
        draw_curves(self.job.folder / "loss.png", self.job.task_id, progress.train_losses, progress.dev_losses)
        write_curves(self.job.folder / "losses.csv", progress.train_losses, progress.dev_losses)
        self._events.flush()
        record = json.dumps(self._record(body), indent=2, ensure_ascii=False)
        # A path may hold bytes that are no UTF-8.
        write_whole(self.job.folder / "run.json", f"{record}\n".encode(errors="backslashreplace"))
        self.job.checkpoint.unlink(missing_ok=True)

    def diverged(self) -> None:
        """Leave an earlier run's prefix as it is, and no checkpoint: it would lead to the same end."""
        self.job.checkpoint.unlink(missing_ok=True)

    def close(self) -> None:
        self._events.close()

    def _resume(self) -> None:
        state = load_checkpoint(self.job.checkpoint, self._made_with)
        if state is None:
            return
        try:
            self.training.load_state(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # of another version, or another program's
            raise OtherRun(f"{self.job.checkpoint} does not fit ({error!r}); start afresh, without --resume") from error

    def _metadata(self) -> dict[str, str]:
        """What the prefix file says of itself, all texts."""
        settings, progress = self.job.settings, self.training.progress
        facts = {
            "backbone": self._backbone.fingerprint,
            "backbone_name": self._backbone.name,
            "task_id": self.job.task_id,
            "prompt_template": settings.prompt_template,
            "steps": progress.best_step or progress.step,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "batch_size": settings.batch_size,
            "seed": settings.seed,
        }
        if progress.dev_losses:
            facts["dev_loss"] = round(progress.best_dev_loss, 6)
        return {name: str(fact) for name, fact in facts.items()}

    def _record(self, body: bytes) -> dict[str, Any]:
        training, progress = self.training, self.training.progress
        return {
            "task_id": self.job.task_id,
            "made_with": self._made_with,
            "prefix": {
                "path": str(self.job.out),
                "sha256": hashlib.sha256(body).hexdigest(),
                "step": progress.best_step or progress.step,
                "num_values": training.result.numel(),
            },
            "train": pairs_told(self.job.data, training.train),
            "valid": None if training.dev is None else pairs_told(self.job.valid, training.dev),
            "num_trained_values": sum(p.numel() for p in training.tuned.parameters() if p.requires_grad),
            "device": str(self._backbone.device),
            "num_steps": progress.step,
            "stopped_early": training.stopped_early,
            "seconds": round(progress.seconds, 3),
            "num_tokens": progress.num_tokens,
            "tokens_per_second": round(progress.tokens_per_second, 1),
            "final_train_loss": progress.train_losses[-1][1],
            "best_dev_loss": progress.best_dev_loss if progress.dev_losses else None,
            "dev_losses": progress.dev_losses,
            "versions": {name: version(name) for name in ("torch", "transformers", "peft", "polyprefix")},
        }


class Runs:
    """Passes on what training tells to the task's own run and to the progress bar."""

    def __init__(self, runs: Sequence[Run], bar: ProgressBar) -> None:
        self._runs = {run.job.task_id: run for run in runs}
        self._bar = bar
        self._diverged: list[TaskTraining] = []

    def stepped(self, training: TaskTraining) -> None:
        self._runs[training.task_id].stepped()
        self._bar.show(training)

    def evaluated(self, training: TaskTraining) -> None:
        self._runs[training.task_id].evaluated()
        self._bar.note(training)

    def finished(self, training: TaskTraining) -> None:
        self._runs[training.task_id].finished()

    def diverged(self, training: TaskTraining) -> None:
        self._runs[training.task_id].diverged()
        self._diverged.append(training)

    def check(self) -> None:
        """Raises `Diverged`, which names every task that did."""
        if self._diverged:
            raise Diverged("; ".join(map(divergence_told, self._diverged)))


def run_jobs(
    jobs: Sequence[Job],
    backbone: FrozenBackbone,
    bar: ProgressBar,
    resume: bool = False,
    rows_per_pass: int = DEFAULT_ROWS_PER_PASS,
) -> None:
    """Train all jobs over one backbone, in shared passes. With `resume`, finished ones are left as they are.

    Whatever is wrong with a job is raised before anything is removed or trained, but `Diverged` once the others have
    come to their ends.
    """
    check_folders(jobs)
    allow_many_files()
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(held(job.folder))
        waiting = [job for job in jobs if not (resume and is_finished(job, backbone))]
        trainings = [read_training(job, backbone) for job in waiting]
        for training in trainings:
            tell_too_long(training, bar)
        runs = [
            stack.enter_context(closing(Run(job, training, backbone, resume)))
            for job, training in zip(waiting, trainings, strict=True)
        ]
        listener = Runs(runs, bar)
        with bar:
            train_together(backbone, trainings, listener, rows_per_pass)
    listener.check()


def tell_too_long(training: TaskTraining, bar: ProgressBar) -> None:
    for pairs, what in ((training.train, "pairs"), (training.dev, "pairs of the dev set")):
        if pairs is not None and pairs.num_too_long:
            told = f"{pairs.num_too_long} {what} do not fit into the context and are left out"
            bar.tell(f"{training.task_id}: {told}")


def check_folders(jobs: Sequence[Job]) -> None:
    """Raises `BadSettings` where a prefix cannot be written, or would be in the place of another job's work or data."""
    examples = {path.resolve() for job in jobs for path in job.example_files}
    for job in jobs:
        if job.out.resolve() in examples:
            raise BadSettings(f"{job.out} holds examples; the prefix of {job.task_id} would take their place")
        if job.out.is_dir():
            raise BadSettings(f"{job.out} is a folder; expected a file for the prefix of {job.task_id}")
    shared = [folder for folder, number in Counter(job.folder for job in jobs).items() if number > 1]
    if shared:
        raise BadSettings(f"several tasks would write to {shared[0]}; give each an out of its own")


def allow_many_files() -> None:
    """A task has two files open while it trains, and many systems allow a process 1,024 until it asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a run's folder and keep other processes out of it. Raises `BadSettings` where one is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # the lock ends with it, and with the process
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadSettings(f"another training writes to {folder}; give this one an out of its own") from None
        yield
    finally:
        os.close(descriptor)


def remove_earlier(folder: Path) -> None:
    """What a run left in its folder; whatever else is there is not ours."""
    for name in ("checkpoint.pt", "run.json", "losses.csv", "loss.png"):
        for path in (folder / name, folder / f"{name}.unfinished"):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def read_training(job: Job, backbone: FrozenBackbone) -> TaskTraining:
    """The job at its beginning, with all its data. Raises `BadExamples` and `BadSettings`; writes nothing."""
    try:
        train, dev = encode_both(job, backbone)
        return TaskTraining(job.task_id, TunedPrefix(backbone, job.settings), job.settings, train, dev)
    except (BadExamples, BadSettings) as error:
        raise type(error)(f"task {job.task_id}: {error}") from error


def is_finished(job: Job, backbone: FrozenBackbone) -> bool:
    """Whether this very run was brought to its end before. Raises `OtherRun` if another one was."""
    record = job.folder / "run.json"
    if job.checkpoint.exists() or not record.exists() or not job.out.exists():
        return False
    try:
        found = json.loads(record.read_text(encoding="utf-8"))["made_with"]
    except (ValueError, KeyError, TypeError) as error:
        raise OtherRun(f"{record} is damaged ({error!r}); start afresh, without --resume") from error
    check_same_run(record, found, made_with(job, backbone))
    return True


def made_with(job: Job, backbone: FrozenBackbone) -> dict[str, Any]:
    """All that a run's result depends on."""
    return {
        "backbone": backbone.fingerprint,
        "precision": backbone.precision,
        "format": job.format_name,
        "data": sha256_of(files_of(job.data, job.format_name)),
        "valid": None if job.valid is None else sha256_of(files_of(job.valid, job.format_name)),
        **dataclasses.asdict(job.settings),
    }


def encode_both(job: Job, backbone: FrozenBackbone) -> tuple[Encoded, Encoded | None]:
    def read(path: Path) -> Encoded:
        examples = read_examples(path, job.format_name)
        return encode(examples, backbone, job.settings.prompt_template, job.settings.num_virtual_tokens)

    return read(job.data), None if job.valid is None else read(job.valid)


def pairs_told(path: Path | None, encoded: Encoded) -> dict[str, Any]:
    return {"path": str(path), "num_pairs": len(encoded.pairs), "num_too_long": encoded.num_too_long}


def divergence_told(training: TaskTraining) -> str:
    step, loss = training.progress.train_losses[-1]
    if not training.loss_is_finite:
        what = f"the loss is {loss}"
    elif not training.dev_loss_is_finite:
        what = f"the dev loss is {training.progress.dev_losses[-1][1]}"
    else:
        what = "the prefix is not finite"
    return (
        f"{training.task_id} diverged: at step {step} {what}, so no prefix was written; "
        f"try a lower learning rate than {training.settings.learning_rate}"
    )
