"""Tells the loss curves of a run: a PNG and a CSV at the end, and TensorBoard's events while it goes.

Knows matplotlib and the event format. Knows nothing of training.
"""

import csv
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

Curve = Sequence[tuple[int, float]]  # (step, loss)
FLUSH_SECONDS = 30.0  # to the disk itself


def draw_curves(path: Path, title: str, train: Curve, dev: Curve) -> None:
    """Write a PNG with the loss of each step, a running mean of it, and the dev losses."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*columns(train), color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(*columns(running_mean(train)), color="tab:blue", label="train")
    if dev:
        axes.plot(*columns(dev), color="tab:orange", marker="o", label="dev")
    axes.set(title=title, xlabel="step", ylabel="cross-entropy of an answer token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_curves(path: Path, train: Curve, dev: Curve) -> None:
    """Write `step,train,dev`, a line per step; dev is empty where the step was not evaluated."""
    evaluated = dict(dev)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train", "dev"])
        writer.writerows((step, loss, evaluated.get(step, "")) for step, loss in train)


def running_mean(curve: Curve) -> list[tuple[int, float]]:
    """An exponential mean over about a fiftieth of the curve, without the bias of a start at zero."""
    keep = 1 - 1 / max(1, len(curve) // 50)
    total = weight = 0.0
    means = []
    for step, value in curve:
        total, weight = keep * total + value, keep * weight + 1
        means.append((step, total / weight))
    return means


def columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


class EventLog:
    """TensorBoard's events of one run, in a file for each time that it was begun or resumed. Of the earlier files
    TensorBoard no longer shows what comes after `step`, where the run goes on; they still hold it.

    No other thread writes them: a full disk is an `OSError` of `add` or `flush`. Of a run that is killed the last half
    minute may be missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def close(self) -> None:
        with suppress(OSError):  # of what was told before
            self._writer.close()
