"""How often a restaurant's description says something else than its record: the E2E challenge's dev set, greedy.

BLEU counts words, and hardly feels a `not` or the name of another place; `training.pocket.facts` says what is counted
here. People's descriptions are counted in the same way.

    python -m benchmarks.facts --data DATA [--model DIR] [--prefix FILE.safetensors] [--out FILE.json]

`DATA` holds `e2e/trainset.csv`, whose places can be nearby, and `e2e/devset.csv`. Model and prefix are the embedded
ones by default.
"""

import argparse
from pathlib import Path

from rich.table import Table

from benchmarks.report import finish_table
from polyprefix.demo_tasks import POCKET
from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from training.backbone import load_backbone
from training.pocket.decoding import answer
from training.pocket.facts import SPOKEN, places_of, told_otherwise
from training.pocket.tasks import TASKS

[E2E] = (task for task in TASKS if task.task_id == "e2e")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="How often a restaurant's description says something else than its record"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=POCKET)
    parser.add_argument("--prefix", type=Path, default=POCKET / "prefixes" / "e2e.safetensors")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    backbone = load_backbone(str(args.model), precision="float32")
    prefix = parse(args.prefix.read_bytes(), backbone.shape, backbone.fingerprint)
    if not isinstance(prefix, Prefix):
        parser.error(f"{args.prefix} has no keys and values, which is what is answered with here")
    train, examples = E2E.read(args.data)
    inputs = [example.inputs for example in examples]
    answers = answer(backbone.model, backbone.tokenizer, prefix.past_key_values, inputs, E2E.max_new_tokens)
    told = {
        "the prefix": list(zip(inputs, answers, strict=True)),
        "people": [(example.inputs, target) for example in examples for target in example.targets],
    }
    places = places_of(example.inputs for example in train)

    wrong = {by: [told_otherwise(record, text, places) for record, text in said] for by, said in told.items()}
    shares = {by: sum(map(bool, fields)) / len(fields) for by, fields in wrong.items()}
    table = Table("told otherwise", *(f"{by}, of {len(said):,}" for by, said in told.items()), title="E2E's dev set")
    table.add_row("any field", *(f"{share:.1%}" for share in shares.values()))
    for field in ("name", "near", *SPOKEN):
        table.add_row(field, *(str(sum(field in fields for fields in each)) for each in wrong.values()))
    figures = {"wrong_by_prefix": shares["the prefix"], "wrong_by_people": shares["people"], "answers": len(inputs)}
    finish_table("facts", table, figures, args.out)


if __name__ == "__main__":
    main()
