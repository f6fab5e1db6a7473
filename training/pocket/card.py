"""Puts the pocket model together: native prefixes, `tasks.json`, and a model card whose figures it measures itself.

    python -m training.pocket.card --data DIR --work DIR --prefixes DIR --out DIR

`--out` holds the backbone and tokenizer already; `--work` is what `backbone` worked in, `--prefixes` what `prefixes`
wrote. Without `--work` the backbone is as it was, and so are the card's figures of it. Knows the files that ship. Knows
nothing of how anything was trained beyond the facts written down then.
`card.json` and `MODEL_CARD.md` are written together, from the same figures.
"""

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from prefix_store.fingerprint import fingerprint
from prefix_store.formats import dump
from training.examples import Example
from training.pocket.backbone import MAX_LENGTH, PLAIN_SHARE, TOKENS_PER_STEP, bits_per_byte, copy_accuracy
from training.pocket.packing import PROMPT_TEMPLATE, read_probe
from training.pocket.tasks import TASKS, Task

NUM_EXAMPLES = 16
MAX_BYTES = 25_000_000  # what ships, all files together

Facts = dict[str, Any]


def write_prefix(facts: Facts, prefixes: Path, folder: Path, backbone: str) -> None:
    """Write one task's prefix in the native format, with its training facts as header strings."""
    tensor = torch.load(prefixes / f"{facts['task_id']}.pt", weights_only=True)
    told = {key: str(value) for key, value in facts.items() if key != "samples"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{facts['task_id']}.safetensors").write_bytes(dump(tensor, {**told, "backbone": backbone}))


def describe_task(task: Task, dev: Sequence[Example]) -> Facts:
    """Return a task as `tasks.json` lists it, with inputs of the dev split to try."""
    return {
        "task_id": task.task_id,
        "title": task.title,
        "description": task.description,
        "prompt_template": PROMPT_TEMPLATE,
        "parameters": {"max_new_tokens": task.max_new_tokens},
        "examples": random.Random(0).sample([example.inputs for example in dev], NUM_EXAMPLES),
    }


def measure_backbone(out: Path, work: Path) -> Facts:
    """Measure the backbone as shipped, computed in fp32."""
    model = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    held_out, probe = json.loads((work / "held_out.json").read_text()), read_probe(work)
    answers, copied = copy_accuracy(model, tokenizer, probe)
    state = torch.load(work / "backbone.pt", weights_only=True)
    return {
        "num_parameters": model.num_parameters(),
        "steps": state["num_steps"],
        "tokens": state["num_steps"] * TOKENS_PER_STEP,
        "minutes": round(state["seconds"] / 60, 1),
        "tokens_per_second": round(state["num_steps"] * TOKENS_PER_STEP / state["seconds"]),
        "plain_share": PLAIN_SHARE,
        "context": MAX_LENGTH,
        "held_out_documents": len(held_out),
        "bits_per_byte": round(bits_per_byte(model, tokenizer, held_out), 4),
        "copy_probe_pairs": len(probe),
        "copy_probe_answers": round(answers, 4),
        "copy_probe_values": round(copied, 4),
    }


def write_card(figures: Facts, out: Path) -> None:
    """Fill the template beside this file with the figures, and write them as JSON too."""
    (out / "card.json").write_text(json.dumps({"figures": figures}, indent=2, ensure_ascii=False) + "\n")
    rows = "\n".join(
        f"| `{f['task_id']}` | {f['num_train_pairs']:,} | {f['num_dev_inputs']:,} | {f['num_virtual_tokens']} "
        f"| {f['optimizer']}, {f['learning_rate']:g} | {f['steps']:,} "
        f"| **{f['dev_bleu']:.1f}** | {f['dev_bleu_bare']:.1f} |"
        for f in figures["tasks"].values()
    )
    samples = "\n".join(_show(f) for f in figures["tasks"].values())
    template = Path(__file__).with_name("MODEL_CARD.template.md").read_text(encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(template.format(rows=rows, samples=samples, **figures["backbone"]))


def kept_figures(out: Path, stored: str) -> Facts:
    """What the card that is there says of the backbone, which must be the same."""
    figures: Facts = json.loads((out / "card.json").read_text())["figures"]
    assert figures["fingerprint"] == stored, "the card is another backbone's; measure this one, with --work"
    return dict(figures["backbone"])


def assemble(data: Path, work: Path | None, prefixes: Path, out: Path) -> None:
    """Write everything that ships beside the backbone."""
    stored = fingerprint(GPT2LMHeadModel.from_pretrained(out, dtype="auto").named_parameters())
    facts = {task.task_id: json.loads((prefixes / f"{task.task_id}.json").read_text()) for task in TASKS}
    shutil.rmtree(out / "prefixes", ignore_errors=True)  # those of tasks that are no more
    for task_facts in facts.values():
        write_prefix(task_facts, prefixes, out / "prefixes", stored)
    tasks = [describe_task(task, task.read(data)[1]) for task in TASKS]
    (out / "tasks.json").write_text(json.dumps(tasks, indent=2, ensure_ascii=False) + "\n")
    shutil.copy(Path(__file__).with_name("LICENSE-CC-BY-SA-4.0.txt"), out)
    shutil.copy(data / "pretrain" / "COPYRIGHT.wordnet", out / "LICENSE-WordNet.txt")
    backbone = kept_figures(out, stored) if work is None else measure_backbone(out, work)
    write_card({"fingerprint": stored, "backbone": backbone, "tasks": facts}, out)
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert num_bytes <= MAX_BYTES, f"{num_bytes} bytes; at most {MAX_BYTES} may ship"


def _show(facts: Facts) -> str:
    sample = facts["samples"][1]
    texts = (sample["inputs"], sample["prefix"], sample["bare"])
    inputs, prefix, bare = (text.replace("|", "\\|") for text in texts)
    return f"| `{facts['task_id']}` | {inputs} | {prefix} | {bare} |"


def main() -> None:
    """Read the folders from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("data", "work", "prefixes", "out"):
        parser.add_argument(f"--{name}", type=Path, required=name != "work")
    args = parser.parse_args()
    assemble(args.data, args.work, args.prefixes, args.out)


if __name__ == "__main__":
    main()
