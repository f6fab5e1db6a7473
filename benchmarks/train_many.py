"""What training many tasks in shared passes gains over training them one after another.

The services of Schema-Guided Dialogue are the tasks, 26 of them, each with its own part of the training file for
training and dev loss. One `polyprefix train-many` is compared with one `polyprefix train` per service: the same
examples, steps, rows a task and seed, by the clock around the commands, start-up included, and by the seconds of the
training steps alone, which the runs write down. Both ways do the same arithmetic, so the dev losses should be the same
up to rounding; they are printed side by side.

    python -m benchmarks.train_many --data DATA [--services 26] [--steps 60] [--model MODEL] [--out FILE.json]

`DATA` holds `sgd_nlg/train.jsonl.gz`. Figures: `train_many_26_vs_single` (with the number of services that were asked
for) is what the one command takes of the single ones' time together; `..._steps_alone` is the same of the steps alone.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import finish_table
from polyprefix.demo_tasks import POCKET

DEV_EVERY = 10  # every tenth record of a service is kept for its dev loss
ROWS_PER_TASK = 8
FLOAT32 = ["--precision", "float32", "--device", "cpu"]


@dataclass(frozen=True, slots=True)
class Trained:
    """One way of training the services: seconds by the clock, seconds of the steps alone, last dev loss by service."""

    seconds: float
    step_seconds: float
    dev_losses: dict[str, float]


def split(source: Path, folder: Path, num_services: int) -> list[str]:
    """Write `train.jsonl` and `dev.jsonl` for the largest services into `folder`; returns their names."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = [(json.loads(line)["service"], line) for line in file]
    services = [service for service, _ in Counter(service for service, _ in lines).most_common(num_services)]
    seen = Counter[str]()
    with (folder / "train.jsonl").open("w") as train, (folder / "dev.jsonl").open("w") as dev:
        for service, line in lines:
            if service in services:
                (train if seen[service] % DEV_EVERY else dev).write(line)
                seen[service] += 1
    return sorted(services)


def settings_of(num_steps: int) -> dict[str, float]:
    return {
        "num_virtual_tokens": 10,
        "learning_rate": 1e-3,
        "batch_size": ROWS_PER_TASK,
        "max_steps": num_steps,
        "eval_every": num_steps,
    }


def train_many(folder: Path, services: Sequence[str], model: str, settings: dict[str, float]) -> Trained:
    """One command for all of them. They share their steps, so the steps' seconds are in every record and count once."""
    defaults = {"data": "train.jsonl", "valid": "dev.jsonl", **settings}
    lines = ['out = "many"', "[defaults]", *(f"{name} = {json.dumps(value)}" for name, value in defaults.items())]
    for service in services:
        lines += [f"[tasks.{service}]", f'format = "sgd:{service}"']
    (folder / "tasks.toml").write_text("\n".join(lines) + "\n")
    seconds = run("train-many", str(folder / "tasks.toml"), "--model", model, *FLOAT32)
    records = {service: record_of(folder / "many", service) for service in services}
    return Trained(seconds, max(record["seconds"] for record in records.values()), last_dev_losses(records))


def train_each(folder: Path, services: Sequence[str], model: str, settings: dict[str, float]) -> Trained:
    """One command after another."""
    numbers = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    files = ["--data", str(folder / "train.jsonl"), "--valid", str(folder / "dev.jsonl")]
    seconds = 0.0
    for service in track(services, "one after another"):
        own = ["--format", f"sgd:{service}", "--out", str(folder / "single" / f"{service}.safetensors")]
        seconds += run("train", service, "--model", model, *files, *own, *numbers, *FLOAT32)
    records = {service: record_of(folder / "single", service) for service in services}
    return Trained(seconds, sum(record["seconds"] for record in records.values()), last_dev_losses(records))


def run(*arguments: str) -> float:
    """Run one command to its end; returns its seconds."""
    started_at = time.perf_counter()
    command = [sys.executable, "-m", "polyprefix", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return time.perf_counter() - started_at


def record_of(folder: Path, service: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / f"{service}.run" / "run.json").read_text())
    return record


def last_dev_losses(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {service: record["dev_losses"][-1][1] for service, record in records.items()}


def loss_table(many: Trained, single: Trained) -> Table:
    table = Table("service", "train-many", "train", "difference", title="dev loss")
    for service, loss in many.dev_losses.items():
        alone = single.dev_losses[service]
        table.add_row(service, f"{loss:.5f}", f"{alone:.5f}", f"{loss - alone:+.1e}")
    return table


def seconds_table(many: Trained, single: Trained) -> Table:
    table = Table("", "whole commands, s", "steps alone, s")
    for label, trained in (("one train-many", many), (f"{len(many.dev_losses)} times train", single)):
        table.add_row(label, f"{trained.seconds:.1f}", f"{trained.step_seconds:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Training many tasks at once against one after another")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sgd_nlg/train.jsonl.gz")
    parser.add_argument("--services", type=int, default=26)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--model", default=str(POCKET))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    settings = settings_of(args.steps)
    with tempfile.TemporaryDirectory(prefix="polyprefix-") as temporary:
        folder = Path(temporary)
        services = split(args.data / "sgd_nlg" / "train.jsonl.gz", folder, args.services)
        many = train_many(folder, services, args.model, settings)
        single = train_each(folder, services, args.model, settings)

    Console().print(loss_table(many, single))
    name = f"train_many_{len(services)}_vs_single"
    losses = [(many.dev_losses[service], single.dev_losses[service]) for service in services]
    figures = {
        name: many.seconds / single.seconds,
        f"{name}_steps_alone": many.step_seconds / single.step_seconds,
        "mean_dev_loss_many": statistics.mean(one for one, _ in losses),
        "mean_dev_loss_single": statistics.mean(other for _, other in losses),
        "largest_dev_loss_difference": max(abs(one - other) for one, other in losses),
    }
    finish_table("train_many", seconds_table(many, single), figures, args.out)


if __name__ == "__main__":
    main()
