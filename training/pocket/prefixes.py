"""Tunes one prefix per task on the frozen pocket backbone, with PEFT, and measures it on the task's dev split.

    python -m training.pocket.prefixes --data DIR --backbone DIR --out DIR e2e commongen

Knows PEFT, the frozen model and the clock. Writes `<task_id>.pt` (keys and values of the native shape, fp16)
and `<task_id>.json` (what was trained and how good it is) into `--out`.
"""

import argparse
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from prefix_store.formats import from_peft
from prefix_store.prefix import BackboneShape
from training.pocket.backbone import LONGEST_STEP
from training.pocket.decoding import answer, bleu
from training.pocket.packing import IGNORED, encode_pairs
from training.pocket.tasks import TASKS, References, Task

# B rows, T tokens per row, P virtual tokens
BATCH_SIZE = 32
WARMUP = 0.04
MLP_WIDTH = 512
MAX_PAIR_LENGTH = 240  # longer pairs are left out of training: a few hundred of WikiSplit
NUM_SAMPLES = 8
NUM_START_PAIRS = 64

logger = logging.getLogger("pocket")


def batches(encoded: list[tuple[list[int], list[int]]], rng: random.Random) -> Any:
    """Yield (ids, mask, labels) `[B, T]` for ever, rows of like length together, in random order."""
    while True:
        shuffled = sorted(encoded, key=lambda pair: len(pair[0]) + len(pair[1]) + rng.uniform(0, 8))
        groups = [shuffled[i : i + BATCH_SIZE] for i in range(0, len(shuffled), BATCH_SIZE)]
        rng.shuffle(groups)
        yield from map(_pad, groups)


def tune(model: GPT2LMHeadModel, encoded: list[tuple[list[int], list[int]]], task: Task) -> tuple[Tensor, int]:
    """Train a prefix for `task.minutes`. Returns it, `[n_layer, 2, P, n_head, head_dim]`, and the number of steps."""
    torch.manual_seed(0)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=task.num_virtual_tokens,
        prefix_projection=True,  # the paper's reparametrisation: an embedding through an MLP
        encoder_hidden_size=MLP_WIDTH,
    )
    start = _mean_keys_and_values(model, random.Random(0).sample(encoded, NUM_START_PAIRS))
    peft_model = get_peft_model(model, config)
    # PEFT starts near keys and values of zero, which draw attention away from the prompt; starting at the mean of real
    # ones and at a rate it allows took 80 steps on hotels_1 from BLEU 33.7 (rate 5e-3) to 41.7 (1e-3).
    peft_model.prompt_encoder["default"].transform[-1].bias.data.copy_(start)
    tuned = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=task.learning_rate, weight_decay=0.01)
    seconds, num_steps = 0.0, 0
    source = batches(encoded, random.Random(0))
    while (used := seconds / (60 * task.minutes)) < 1.0:
        started = time.monotonic()
        optimizer.param_groups[0]["lr"] = task.learning_rate * min(1.0, used / WARMUP + 0.01) * (1.0 - used)
        ids, mask, labels = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = peft_model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        num_steps += 1
        if num_steps % 100 == 0:
            logger.info("%s step %d, %.0f s, loss %.3f", task.task_id, num_steps, seconds, loss.item())
        seconds += min(time.monotonic() - started, LONGEST_STEP)
    return _native(peft_model, model), num_steps


def measure(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    prefix: Tensor,
    references: References,
    max_new_tokens: int,
) -> tuple[float, list[str]]:
    """Return dev BLEU of greedy answers, and the answers."""
    answers = answer(model, tokenizer, prefix, list(references), max_new_tokens)
    return bleu(answers, list(references.values())), answers


def make_prefix(task: Task, data: Path, backbone: Path, out: Path) -> None:
    """Tune, measure and write one task's prefix."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(backbone)
    model = GPT2LMHeadModel.from_pretrained(backbone, dtype=torch.float32).eval()
    train, references = task.read(data)
    encoded = [p for p in encode_pairs(tokenizer, train) if len(p[0]) + len(p[1]) <= MAX_PAIR_LENGTH]
    prefix, num_steps = tune(model, encoded, task)
    model = GPT2LMHeadModel.from_pretrained(backbone, dtype=torch.float32).eval()
    score, answers = measure(model, tokenizer, prefix, references, task.max_new_tokens)
    bare, bare_answers = measure(model, tokenizer, prefix[:, :, :0], references, task.max_new_tokens)
    samples = list(zip(references, answers, bare_answers, strict=True))[:: max(1, len(references) // NUM_SAMPLES)]
    facts = {
        "task_id": task.task_id,
        "num_train_pairs": len(encoded),
        "num_dev_inputs": len(references),
        "num_virtual_tokens": task.num_virtual_tokens,
        "learning_rate": task.learning_rate,
        "batch_size": BATCH_SIZE,
        "steps": num_steps,
        "dev_bleu": round(score, 2),
        "dev_bleu_bare": round(bare, 2),
        "samples": [{"inputs": i, "prefix": p, "bare": b} for i, p, b in samples],
    }
    out.mkdir(parents=True, exist_ok=True)
    torch.save(prefix, out / f"{task.task_id}.pt")
    (out / f"{task.task_id}.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    logger.info("%s: BLEU %.2f, bare backbone %.2f", task.task_id, score, bare)


def _pad(group: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(prompt) + len(target) for prompt, target in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, target) in enumerate(group):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor([*prompt, *target])
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(target)
    return ids, mask, labels


@torch.no_grad()
def _mean_keys_and_values(model: GPT2LMHeadModel, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    """The mean over the tokens of some pairs of every layer's key, then value: `[n_layer * 2 * n_embd]`."""
    ids, mask, _ = _pad(pairs)
    cache = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]  # each [B, H, T, D]
    return torch.cat([part.transpose(1, 2)[mask.bool()].mean(dim=0).flatten() for part in parts])


def _native(peft_model: PeftModel, model: GPT2LMHeadModel) -> Tensor:
    config = model.config
    shape = BackboneShape(config.n_layer, config.n_head, config.n_embd // config.n_head, config.n_positions)
    return from_peft(peft_model.get_prompt_embedding_to_save("default"), shape).half()


def main() -> None:
    """Make the prefixes of the tasks named on the command line, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the model and the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prefixes")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="task ids; all where none is given")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    unknown = set(args.tasks) - {task.task_id for task in TASKS}
    if unknown:
        parser.error(f"no such task: {', '.join(sorted(unknown))}")
    for task in TASKS:
        if not args.tasks or task.task_id in args.tasks:
            make_prefix(task, args.data, args.backbone, args.out)


if __name__ == "__main__":
    main()
