"""Trains the pocket backbone from scratch on a CPU, within a budget of minutes.

    python -m training.pocket.backbone --data DIR --work DIR --out DIR --minutes 88

With `--start` it goes on from that model instead, on other pairs with another `--seed`. With `--target-readings` it
reads what two tasks of the experiments answer as well, and with `--target-pairs` it learns to write that from pairs,
too.

Knows the model, the optimizers and the clock. Knows nothing of tasks or prefixes. The learning rate follows the share
of the budget that is used, so a slow or crowded machine ends on time with fewer steps; a stopped process loses no
budget. A checkpoint is written every few minutes, and `--resume` goes on from it.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import astuple
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from training.pocket.packing import (
    IGNORED,
    Rows,
    Targets,
    copied_positions,
    encode_documents,
    encode_pairs,
    read_probe,
    write_tokens,
)
from training.pocket.pairs import Pair
from training.pocket.tokenizer import VOCAB_SIZE

# B rows, T tokens per row
MAX_LENGTH = 512
TOKENS_PER_STEP = 8192
PLAIN_SHARE = 0.4
SHORT_LENGTH = 256  # 256 tokens a row until the last part of training: attention costs half
LONG_FROM = 0.85
PEAK_LR = 3e-3
LATER_PEAK_LR = 1e-3  # of a model that has learned before
WARMUP = 0.02
WEIGHT_DECAY = 0.1
NUM_PAIRS = 400_000
REPORT_SECONDS = 180
LONGEST_STEP = 20.0  # a step that took longer was stopped from outside; its time is not charged to the budget

logger = logging.getLogger("pocket")


def build_model(start: Path | None, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of 5.9 M parameters: 6 layers, 256 wide, 4 heads of 64. Its weights are random, or those of `start`."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=MAX_LENGTH,
        n_embd=256,
        n_layer=6,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    if start is None:
        return GPT2LMHeadModel(config)
    return GPT2LMHeadModel.from_pretrained(start, config=config, dtype=torch.float32)


class Trainer:
    """Owns the model, its optimizers and the budget used so far."""

    def __init__(self, model: GPT2LMHeadModel, peak_lr: float) -> None:
        self.model = model
        self.peak_lr = peak_lr
        inner = {id(p) for p in model.transformer.h.parameters() if p.ndim == 2}
        matrices = [p for p in model.parameters() if id(p) in inner]
        others = [p for p in model.parameters() if id(p) not in inner]
        # Muon for the matrices inside the blocks; its update is scaled to that of AdamW, so one rate serves both.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=peak_lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.num_steps = 0
        self.seconds = 0.0
        self._loss = torch.compile(self._eager_loss, dynamic=False)

    def step(self, ids: Tensor, labels: Tensor, used: float) -> float:
        """Run one update; `used` is the share of the budget gone. Returns the loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.peak_lr * min(1.0, used / WARMUP + 0.01) * (1.0 - used)
        # Rows shorter than the context begin at a random position, so that every position is trained.
        starts = torch.randint(0, MAX_LENGTH - ids.shape[1] + 1, (ids.shape[0], 1))  # [B, 1]
        loss = self._loss(ids, labels, starts + torch.arange(ids.shape[1]))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.num_steps += 1
        return loss.item()

    def _eager_loss(self, ids: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.model.transformer(input_ids=ids, position_ids=positions).last_hidden_state
            logits = self.model.lm_head(hidden)  # [B, T, vocab]
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def save(self, path: Path) -> None:
        """Write a checkpoint in one move, so that a killed process leaves the last one whole."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers}
        torch.save({**state, "num_steps": self.num_steps, "seconds": self.seconds}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.num_steps, self.seconds = state["num_steps"], state["seconds"]


@torch.no_grad()
def bits_per_byte(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Bits per UTF-8 byte over packed documents, in windows of the whole context (ends of text count as one byte)."""
    ids = [i for document in encode_documents(tokenizer, texts) for i in document]
    num_bytes = sum(len(text.encode()) + 1 for text in texts)
    rows = torch.tensor(ids[: len(ids) // MAX_LENGTH * MAX_LENGTH]).view(-1, MAX_LENGTH)  # [B, T]
    nats = 0.0
    for batch in torch.split(rows, 16):
        logits = model(input_ids=batch).logits[:, :-1].float()
        nats += float(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    per_token = nats / (rows.shape[0] * (MAX_LENGTH - 1))
    return per_token * len(ids) / num_bytes / math.log(2)


@torch.no_grad()
def copy_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, probe: list[Pair]) -> tuple[float, float]:
    """Next-token accuracy on unseen record-to-sentence pairs: (over all answer tokens, over copied values only)."""
    hits, copied = [], []
    for pair, (prompt, answer) in zip(probe, encode_pairs(tokenizer, probe), strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        guesses = logits[len(prompt) - 1 : -1].argmax(dim=-1)
        right = (guesses == torch.tensor(answer)).tolist()
        hits += right
        copied += [hit for hit, inside in zip(right, copied_positions(tokenizer, pair), strict=True) if inside]
    return sum(hits) / len(hits), sum(copied) / len(copied)


def report(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, work: Path, loss: float) -> None:
    """Log how good the model is by now."""
    texts = json.loads((work / "held_out.json").read_text())[::3]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bpb = bits_per_byte(trainer.model, tokenizer, texts)
        answers, values = copy_accuracy(trainer.model, tokenizer, read_probe(work)[:100])
    seconds, steps = trainer.seconds, trainer.num_steps
    logger.info(
        "%5.1f min  step %d  %.0f tokens/s  loss %.3f  bits/byte %.3f  probe: answers %.3f, copied values %.3f",
        seconds / 60, steps, steps * TOKENS_PER_STEP / max(seconds, 1.0), loss, bpb, answers, values,
    )  # fmt: skip


def train(work: Path, out: Path, minutes: float, start: Path | None, seed: int, resume: bool) -> None:
    """Train for `minutes` of running time and save the model, in fp16, beside the tokenizer in `out`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    trainer = Trainer(build_model(start, seed), PEAK_LR if start is None else LATER_PEAK_LR)
    checkpoint = work / "backbone.pt"
    if resume:
        trainer.load(checkpoint)
    rows = Rows(work, (seed, trainer.num_steps))
    next_report = trainer.seconds + REPORT_SECONDS / 3
    loss = math.nan
    while (used := trainer.seconds / (60 * minutes)) < 1.0:
        started = time.monotonic()
        length = SHORT_LENGTH if used < LONG_FROM else MAX_LENGTH
        num_rows = TOKENS_PER_STEP // length
        num_plain = round(PLAIN_SHARE * num_rows)
        loss = trainer.step(*rows.draw(num_plain, num_rows - num_plain, length), used)
        trainer.seconds += min(time.monotonic() - started, LONGEST_STEP)
        if trainer.seconds >= next_report:
            next_report += REPORT_SECONDS
            trainer.save(checkpoint)
            report(trainer, tokenizer, work, loss)
    trainer.save(checkpoint)
    report(trainer, tokenizer, work, loss)
    save_model(trainer.model, out)


def save_model(model: GPT2LMHeadModel, out: Path) -> None:
    """Save an ordinary GPT-2 checkpoint in fp16."""
    model.config.activation_function = "gelu_new"
    model.config.use_cache = model.generation_config.use_cache = True
    model.half().save_pretrained(out)


def main() -> None:
    """Make the tokens where they are missing, then train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for token ids and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the tokenizer")
    parser.add_argument("--minutes", type=float, required=True, help="running time that training may take")
    parser.add_argument("--start", type=Path, help="a model to go on from")
    parser.add_argument("--target-readings", type=int, default=0, help="how often the tasks' sentences are in the text")
    parser.add_argument("--target-pairs", action="store_true", help="make pairs of the tasks' sentences, too")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, and of the order in which all is read")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    args = parser.parse_args()
    if args.target_pairs and not args.target_readings:
        parser.error("--target-pairs needs --target-readings: there are no sentences to make pairs of")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    targets = Targets(args.target_readings, args.target_pairs)
    made_of, made = args.work / "made_of.json", json.dumps([str(args.start), *astuple(targets), args.seed])
    if not made_of.exists():
        write_tokens(args.data, args.out, args.work, NUM_PAIRS, MAX_LENGTH, args.start, targets, args.seed)
        made_of.write_text(made)
    elif made_of.read_text() != made:
        parser.error(f"{args.work} has the tokens of other arguments: {made_of.read_text()}, and not {made}")
    train(args.work, args.out, args.minutes, args.start, args.seed, args.resume)


if __name__ == "__main__":
    main()
