"""Whether a training run that is killed and resumed ends where it would have ended.

`polyprefix train` on one service of Schema-Guided Dialogue, embedded model, float32. One run is left alone; the other
one is killed with SIGKILL as soon as it tells the dev loss of its 20th step, which is before that step's checkpoint is
on disk or shortly after, goes on with `--resume`, is killed again at its 40th step, and goes on to its end.

    python -m benchmarks.resume --data DATA [--out FILE.json]

`DATA` holds `sgd_nlg/train.jsonl.gz` and `dev.jsonl`. Figures: `resume_loss_difference`, of the last dev losses, and
`resume_same_file`, 1 where the two prefix files have the same sha256.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.report import finish_table
from polyprefix.demo_tasks import POCKET

SERVICE = "Hotels_1"
NUM_STEPS = 60
EVAL_EVERY = 10
KILLED_AFTER = (20, 40)
SETTINGS = {
    "num-virtual-tokens": 10,
    "learning-rate": 1e-3,
    "batch-size": 8,
    "max-steps": NUM_STEPS,
    "eval-every": EVAL_EVERY,
    "precision": "float32",
    "device": "cpu",
}


def command(data: Path, out: Path) -> list[str]:
    files = ["--data", str(data / "sgd_nlg" / "train.jsonl.gz"), "--valid", str(data / "sgd_nlg" / "dev.jsonl")]
    numbers = [f"--{name}={value}" for name, value in SETTINGS.items()]
    task = ["train", SERVICE, "--model", str(POCKET), "--format", f"sgd:{SERVICE}", "--out", str(out)]
    return [sys.executable, "-m", "polyprefix", *task, *files, *numbers]


def train(started: list[str]) -> None:
    done = subprocess.run(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(started)}: {done.stderr}")


def train_until(step: int, started: list[str]) -> None:
    """Kill the run once it has told the dev loss of `step`."""
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in iter(process.stderr.readline, ""):
            lines.append(line)
            if f"step {step} of {NUM_STEPS}" in line:
                process.kill()
                return
    raise SystemExit(f"the run ended before it told the dev loss of step {step}: {''.join(lines)}")


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out.with_suffix(".run") / "run.json").read_text())
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="A run that is killed and resumed against one that is not")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sgd_nlg/")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="polyprefix-") as folder:
        whole, killed = Path(folder) / "whole.safetensors", Path(folder) / "killed.safetensors"
        train(command(args.data, whole))
        for step in KILLED_AFTER:
            train_until(step, [*command(args.data, killed), "--resume"])
            assert not killed.exists(), "killed in the middle"
        train([*command(args.data, killed), "--resume"])
        left_alone, resumed = record_of(whole), record_of(killed)

    table = Table("step", "left alone", "killed twice and resumed", title="dev loss")
    for (step, one), (_, other) in zip(left_alone["dev_losses"], resumed["dev_losses"], strict=True):
        table.add_row(str(step), f"{one:.9f}", f"{other:.9f}")
    figures = {
        "resume_loss_difference": abs(left_alone["dev_losses"][-1][1] - resumed["dev_losses"][-1][1]),
        "resume_same_file": float(left_alone["prefix"]["sha256"] == resumed["prefix"]["sha256"]),
    }
    finish_table("resume", table, figures, args.out)


if __name__ == "__main__":
    main()
