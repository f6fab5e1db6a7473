"""Sample outputs of the embedded tasks, drawn blindly: a Markdown table of inputs and answers.

A real server answers greedily, with each task's own parameters. The inputs are drawn from those that ship in
`tasks.json`, 16 of each task, which were themselves drawn from its dev set by `random.Random(0)`. (Some short inputs of
the dialogue tasks stand in the training set too.)

    python -m benchmarks.samples [--num 5] [--seed 0] [--out FILE.json]
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.embedded_server import embedded_server
from benchmarks.report import commit
from polyprefix.demo_burst import Ask, Row, ask_one_by_one
from polyprefix.demo_tasks import DemoTask, embedded_tasks


def draw(tasks: Sequence[DemoTask], num: int, seed: int) -> list[Ask]:
    """`num` examples of each task."""
    chooser = random.Random(seed)
    return [Ask(task.task_id, inputs) for task in tasks for inputs in chooser.sample(list(task.examples), num)]


def markdown_row(row: Row) -> str:
    cells = (row.task_id, row.inputs, row.answer.strip())
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers of the embedded tasks to inputs that are drawn at random")
    parser.add_argument("--num", type=int, default=5, help="inputs of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    asks = draw(embedded_tasks(), args.num, args.seed)
    with embedded_server() as client:
        rows = list(ask_one_by_one(client, asks))
    print("| task | input | answer |", "|---|---|---|", *map(markdown_row, rows), sep="\n")
    samples = [{"task_id": row.task_id, "inputs": row.inputs, "answer": row.answer.strip()} for row in rows]
    result = {"name": "samples", "seed": args.seed, "commit": commit(), "samples": samples}
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
