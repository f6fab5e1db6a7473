"""What a lab's worker processes do: load the backbone once, then tune and score one trial after another.

Knows where the lab works. Answers with plain dictionaries, which are what is kept.
"""

import hashlib
import json
import math
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from training.backbone import FrozenBackbone, load_backbone
from training.experiments.problems import PROBLEMS
from training.experiments.scales import Scale
from training.experiments.trials import Trial, answers, drawn, tune

BEAMS = 5  # of the paper's table-to-text results


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lab works: all that its results depend on, and where they go."""

    model: str
    data: Path
    scale: Scale
    out: Path
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Worker:
    place: Place
    backbone: FrozenBackbone


worker: Worker


def start_worker(place: Place, num_processes: int) -> None:
    global worker
    watch_parent()
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    worker = Worker(place, load_backbone(place.model, place.device))


def watch_parent() -> None:
    """End with the lab: one that is killed tells its workers nothing, and the next one would compete with them."""
    lab = os.getppid()

    def watch() -> None:
        while os.getppid() == lab:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(trial: Trial, split: str | None) -> dict[str, Any]:
    """Tune and score on the dev set, or score what was tuned on a test split."""
    return run_trial(trial) if split is None else test_trial(trial, split)


def run_trial(trial: Trial) -> dict[str, Any]:
    place, scale, backbone = worker.place, worker.place.scale, worker.backbone
    tuned = tune(trial, scale, backbone, place.data)
    path = tuned_path(trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tuned.tensor, path)
    problem = PROBLEMS[trial.problem]
    examples = drawn(problem.read_dev(place.data), scale.num_dev_inputs)
    said = answers(trial, tuned.tensor, examples, scale, backbone, num_beams=1)
    score = problem.bleu(said, [example.targets for example in examples])
    return {
        "trial": asdict(trial),
        "split": None,
        "dev_bleu": score.score,
        "dev_loss": None if math.isnan(tuned.dev_loss) else tuned.dev_loss,
        "dev_losses": tuned.dev_losses,
        "best_step": tuned.best_step,
        "num_steps": tuned.num_steps,
        "seconds": round(tuned.seconds, 1),
        "num_tuned": tuned.tensor.numel(),
    }


def test_trial(trial: Trial, split: str) -> dict[str, Any]:
    place, scale = worker.place, worker.place.scale
    problem = PROBLEMS[trial.problem]
    examples = drawn(problem.tests[split](place.data), scale.num_test_inputs)
    tuned = torch.load(tuned_path(trial), weights_only=True)
    said = answers(trial, tuned, examples, scale, worker.backbone, BEAMS)
    score = problem.bleu(said, [example.targets for example in examples])
    return {
        "trial": asdict(trial),
        "split": split,
        "bleu": score.score,
        "bleu_signature": score.signature,
        "num_inputs": len(examples),
    }


def tuned_path(trial: Trial) -> Path:
    name = hashlib.sha256(json.dumps(asdict(trial)).encode()).hexdigest()[:16]
    return worker.place.out / "tuned" / f"{name}.pt"
