"""Tunes one prefix per task on the frozen pocket backbone, with the project's own trainer, and measures it on the
task's dev split.

    python -m training.pocket.prefixes --data DIR --backbone DIR --out DIR e2e homes_acts

Knows the tasks and how their prefixes start. Writes `<task_id>.pt` (keys and values of the native shape, fp16)
and `<task_id>.json` (what was trained and how good it is) into `--out`.
"""

import argparse
import dataclasses
import json
import logging
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from training.backbone import FrozenBackbone, load_backbone
from training.encoding import Encoded, encode
from training.errors import Diverged
from training.examples import Example
from training.pocket.decoding import answer, bleu
from training.pocket.packing import PROMPT_TEMPLATE
from training.pocket.tasks import TASKS, Task
from training.prefix_tuning import TunedPrefix
from training.settings import Settings
from training.task_training import TaskTraining
from training.train import train_together

BATCH_SIZE = 4
MAX_PAIR_LENGTH = 240  # longer pairs are left out of training
NUM_EVALUATIONS = 8  # of the dev loss; what was best is what ships
NUM_DEV_PAIRS = 400
NUM_SAMPLES = 8

logger = logging.getLogger("pocket")


class Log:
    """Hears of the training's steps, and tells every hundredth."""

    def stepped(self, training: TaskTraining) -> None:
        progress = training.progress
        step, loss = progress.train_losses[-1]
        if step % 100 == 0:
            logger.info("%s step %d, %.0f s, loss %.3f", training.task_id, step, progress.seconds, loss)

    def evaluated(self, training: TaskTraining) -> None:
        logger.info("%s step %d, dev loss %.3f", training.task_id, *training.progress.dev_losses[-1])

    def finished(self, training: TaskTraining) -> None: ...

    def diverged(self, training: TaskTraining) -> None:
        raise Diverged(f"{training.task_id} diverged at step {training.progress.step}")


def settings_of(task: Task, train: Encoded, backbone: FrozenBackbone) -> Settings:
    """Keys and values are tuned themselves, and start as those of training examples, one after another."""
    tokens = (token for pair in train.pairs for token in (*pair.prompt, *pair.answer))
    start = list(islice(tokens, task.num_virtual_tokens))
    return Settings(
        num_virtual_tokens=task.num_virtual_tokens,
        mlp_width=0,
        init_text=backbone.tokenizer.decode(start),
        prompt_template=PROMPT_TEMPLATE,
        optimizer=task.optimizer,
        learning_rate=task.learning_rate,
        batch_size=BATCH_SIZE,
        max_steps=task.num_steps,
        eval_every=max(1, task.num_steps // NUM_EVALUATIONS),
    )


def encode_short(examples: Sequence[Example], backbone: FrozenBackbone, task: Task) -> Encoded:
    encoded = encode(examples, backbone, PROMPT_TEMPLATE, task.num_virtual_tokens)
    short = tuple(pair for pair in encoded.pairs if pair.num_tokens <= MAX_PAIR_LENGTH)
    return dataclasses.replace(encoded, pairs=short)


def some_of(dev: Encoded) -> Encoded:
    """As many of its pairs as a dev loss is taken on."""
    pairs = random.Random(0).sample(dev.pairs, min(NUM_DEV_PAIRS, len(dev.pairs)))
    return dataclasses.replace(dev, pairs=tuple(pairs))


def tune(backbone: FrozenBackbone, train: Encoded, dev: Encoded, task: Task) -> TaskTraining:
    settings = settings_of(task, train, backbone)
    training = TaskTraining(task.task_id, TunedPrefix(backbone, settings), settings, train, dev)
    train_together(backbone, [training], Log())
    return training


def measure(
    backbone: FrozenBackbone, prefix: Tensor, dev: Sequence[Example], max_new_tokens: int
) -> tuple[float, list[str]]:
    """Return dev BLEU of greedy answers, and the answers."""
    inputs = [example.inputs for example in dev]
    answers = answer(backbone.model, backbone.tokenizer, prefix, inputs, max_new_tokens)
    return bleu(answers, [example.targets for example in dev]), answers


def make_prefix(task: Task, data: Path, backbone: FrozenBackbone, out: Path) -> None:
    """Tune, measure and write one task's prefix."""
    train, dev = task.read(data)
    encoded = encode_short(train, backbone, task)
    training = tune(backbone, encoded, some_of(encode_short(dev, backbone, task)), task)
    prefix = training.result.half()
    score, answers = measure(backbone, prefix, dev, task.max_new_tokens)
    bare, bare_answers = measure(backbone, prefix[:, :, :0], dev, task.max_new_tokens)
    samples = list(zip(dev, answers, bare_answers, strict=True))[:: max(1, len(dev) // NUM_SAMPLES)]
    facts = {
        "task_id": task.task_id,
        "num_train_pairs": len(encoded.pairs),
        "num_dev_inputs": len(dev),
        "num_virtual_tokens": task.num_virtual_tokens,
        "optimizer": task.optimizer,
        "learning_rate": task.learning_rate,
        "batch_size": BATCH_SIZE,
        "steps": training.progress.best_step,
        "dev_bleu": round(score, 2),
        "dev_bleu_bare": round(bare, 2),
        "samples": [{"inputs": example.inputs, "prefix": p, "bare": b} for example, p, b in samples],
    }
    out.mkdir(parents=True, exist_ok=True)
    torch.save(prefix, out / f"{task.task_id}.pt")
    (out / f"{task.task_id}.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    logger.info("%s: BLEU %.2f, bare backbone %.2f", task.task_id, score, bare)


def main() -> None:
    """Make the prefixes of the tasks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the model and the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prefixes")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task ids; all where none is given")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    unknown = set(args.tasks) - {task.task_id for task in TASKS}
    if unknown:
        parser.error(f"no such task: {', '.join(sorted(unknown))}")
    backbone = load_backbone(args.backbone)
    for task in TASKS:
        if not args.tasks or task.task_id in args.tasks:
            make_prefix(task, args.data, backbone, args.out)


if __name__ == "__main__":
    main()
