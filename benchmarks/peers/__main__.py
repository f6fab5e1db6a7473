"""Our engine beside others on the same cores: tokens per second at the same numbers of rows.

GPT-2 small's shape with random weights, the same for all; prompt 32, 64 new tokens, greedy, the end-of-text token
forbidden or ignored. Our rows are all of distinct tasks with prefixes of 10 virtual tokens; the others run the bare
model, but for PEFT. Each is a child process in an environment of its own, made on first use, that runs as many threads
as torch does here, and computes only while we do not. Each figure is the median of ratios of interleaved pairs, ours
over theirs:

- `vs_openvino_{1,8,32,64}`: OpenVINO GenAI's continuous batching, bfloat16;
- `int8_vs_openvino_int8_{1,8,32,64}`: the same with int8 weights, over our int8;
- `vs_ctranslate2_int8_32`: CTranslate2 with int8 weights, over our int8;
- `vs_transformers_batch_32`: transformers' `generate` over a static batch, bfloat16;
- `vs_peft_sequential`: PEFT's `generate` of prefix-tuned tasks, one request after another, over our 32 mixed rows (four
  requests in each pair, since they take a second or two each);
- `vs_vllm_cpu_32`: vLLM's CPU build, bfloat16.

    python -m benchmarks.peers [--pairs 9] [--only openvino,peft] [--out FILE.json]

Beside FILE.json it draws FILE.png. A peer that cannot be installed or started is left out, and the exit status is 1.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.engine import (
    MAX_ROWS,
    NUM_NEW_TOKENS,
    NUM_ROWS,
    NUM_SEQUENTIAL,
    interleaved,
    make_prefix,
    make_requests,
)
from benchmarks.peers.chart import draw
from benchmarks.peers.child import Child, Peer, PeerError, running
from benchmarks.random_server import random_model
from benchmarks.report import finish_table, spread
from benchmarks.small import Small, make_small, seconds_of

PEERS = {
    "openvino": Peer("openvino_peer", "openvino", ("bf16",)),
    "openvino_int8": Peer("openvino_peer", "openvino", ("int8",)),
    "ctranslate2": Peer("ctranslate2_peer", "ctranslate2"),
    "transformers": Peer("transformers_peer"),
    "peft": Peer("peft_peer"),
    "vllm_cpu": Peer("vllm_cpu_peer", "vllm_cpu"),
}
ALL_ROWS = (1, 8, NUM_ROWS, MAX_ROWS)

Speeds = dict[tuple[str, int], list[float]]  # tokens per second of each run, by who ran and how many rows at a time


@dataclass(frozen=True, slots=True)
class Comparison:
    """`num_asked` prompts of the peer, which runs `num_peer_rows` of them at a time, beside `num_rows` of ours."""

    figure: str
    num_rows: int
    num_asked: int
    num_peer_rows: int
    dtype: str = "auto"


def alike(figure: str, num_rows: int, dtype: str = "auto") -> Comparison:
    return Comparison(figure, num_rows, num_rows, num_rows, dtype)


COMPARISONS = {
    "openvino": [alike(f"vs_openvino_{num_rows}", num_rows) for num_rows in ALL_ROWS],
    "openvino_int8": [alike(f"int8_vs_openvino_int8_{num_rows}", num_rows, "int8") for num_rows in ALL_ROWS],
    "ctranslate2": [alike("vs_ctranslate2_int8_32", NUM_ROWS, "int8")],
    "transformers": [alike("vs_transformers_batch_32", NUM_ROWS)],
    "peft": [Comparison("vs_peft_sequential", NUM_ROWS, NUM_SEQUENTIAL, 1)],
    "vllm_cpu": [alike("vs_vllm_cpu_32", NUM_ROWS)],
}


def compare(small: Small, child: Child, comparison: Comparison, num_pairs: int) -> tuple[list[float], list[float]]:
    """Tokens per second of our runs and of the child's, pair by pair."""
    config = small.model.config
    requests = make_requests([make_prefix(config, seed) for seed in range(comparison.num_rows)], config.vocab_size)
    num_tokens = comparison.num_rows * NUM_NEW_TOKENS
    prompts = [request.prompt_token_ids for request in requests[: comparison.num_asked]]
    measured = interleaved(
        {
            "ours": lambda: num_tokens / seconds_of(small.engine, requests),
            "theirs": lambda: child.tokens_per_second(prompts, NUM_NEW_TOKENS),
        },
        num_pairs,
    )
    return measured["ours"], measured["theirs"]


def table_of(speeds: Mapping[tuple[str, int], Sequence[float]]) -> Table:
    """A line for each who ran, a column for each number of rows."""
    table = Table(
        "tokens per second", *("1 row" if num_rows == 1 else f"{num_rows} rows" for num_rows in ALL_ROWS), title="peers"
    )
    for label in sorted({label for label, _ in speeds}):
        cells = [speeds.get((label, num_rows)) for num_rows in ALL_ROWS]
        table.add_row(label, *(spread(numbers) if numbers else "" for numbers in cells))
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our engine beside others on the same cores")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if unknown := set(args.only) - PEERS.keys():
        parser.error(f"no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return args


def main() -> None:
    args = parse_arguments()
    smalls = {dtype: make_small(argparse.Namespace(device="cpu", dtype=dtype), MAX_ROWS) for dtype in ("auto", "int8")}
    speeds: Speeds = defaultdict(list)
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with random_model() as model:
        for name in args.only:
            try:
                with running(PEERS[name], model, torch.get_num_threads()) as child:
                    for comparison in COMPARISONS[name]:
                        small = smalls[comparison.dtype]
                        ours, theirs = compare(small, child, comparison, args.pairs)
                        speeds[f"ours, {small.dtype}", comparison.num_rows] += ours
                        speeds[name, comparison.num_peer_rows] += theirs
                        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
                        figures[comparison.figure] = statistics.median(ratios)
                        print(f"{comparison.figure}: {spread(ratios)}", flush=True)
            except PeerError as error:
                left_out[name] = str(error)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if args.out is not None and speeds:
        draw(speeds, args.out.with_suffix(".png"))
    finish_table("peers", table_of(speeds), figures, args.out)
    sys.exit(1 if left_out else 0)


if __name__ == "__main__":
    main()
