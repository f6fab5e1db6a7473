"""What following a grammar costs, in tokens per second of a whole batch.

GPT-2 small's shape with random weights and a made-up vocabulary of its size, 32 rows, prompt 32, 64 new tokens, greedy.
The grammar is a JSON schema of a list of records that is too long to end. Each figure is the median of one minus the
ratios of runs that were interleaved within this one process:

- `grammar_cost_32`: all 32 rows follow it, against none;
- `grammar_cost_1_of_32`: one row follows it, against none.

    python -m benchmarks.grammar [--pairs 9] [--dtype bfloat16] [--out FILE.json]
"""

import itertools
import json
import random
import statistics
from dataclasses import replace
from importlib.resources import files

from transformers import GPT2Config

from batching.engine import Engine
from batching.types import Request, SamplingParams
from benchmarks.arguments import make_parser
from benchmarks.report import finish
from benchmarks.small import make_small, seconds_of
from server.constraints import GrammarFollower
from server.grammar_compiler import Grammar
from server.kept_grammars import OwnGrammar

NUM_ROWS = 32
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 64

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "color": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "age", "color"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": RECORD, "minItems": 100}
LABELS = {"none of 32": 0, "one of 32": 1, "all 32": NUM_ROWS}


def made_up_tokenizer(vocab_size: int) -> str:
    """A tokenizer.json: the embedded model's tokens, and what two of them make together, up to `vocab_size`."""
    tokenizer = json.loads((files("polyprefix") / "pocket" / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])][: vocab_size - 1]
    pairs = ("".join(pair) for pair in itertools.product(tokens[256:], repeat=2))
    for token in itertools.takewhile(lambda _: len(vocab) < vocab_size, pairs):
        vocab.setdefault(token, len(vocab))
    return json.dumps(tokenizer)


def make_requests(vocab_size: int, num_constrained: int) -> list[Request]:
    """The first `num_constrained` rows follow the grammar; the others never end before they are cut."""
    chooser = random.Random(0)
    prompts = [tuple(chooser.randrange(1, vocab_size) for _ in range(NUM_PROMPT_TOKENS)) for _ in range(NUM_ROWS)]
    free = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS)
    grammar = OwnGrammar("default", Grammar("json", json.dumps(SCHEMA)))
    follows = replace(free, min_new_tokens=0)
    return [
        Request(str(i), "default", prompt, None, follows, constraint=grammar)
        if i < num_constrained
        else Request(str(i), "default", prompt, None, free)
        for i, prompt in enumerate(prompts)
    ]


def tokens_per_second(engine: Engine, requests: list[Request]) -> float:
    return NUM_ROWS * NUM_NEW_TOKENS / seconds_of(engine, requests)


def main() -> None:
    parser = make_parser("Rows that follow a grammar against rows that do not")
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()
    config = GPT2Config()
    follower = GrammarFollower(made_up_tokenizer(config.vocab_size), config.eos_token_id)
    small = make_small(args, NUM_ROWS, constrain=follower.begin)
    batches = {label: make_requests(config.vocab_size, count) for label, count in LABELS.items()}
    measured: dict[str, list[float]] = {label: [] for label in LABELS}
    for requests in batches.values():
        tokens_per_second(small.engine, requests)
    for pair in range(args.pairs):
        order = list(LABELS) if pair % 2 == 0 else list(reversed(LABELS))
        for label in order:
            measured[label].append(tokens_per_second(small.engine, batches[label]))
    follower.close()

    costs = {
        "grammar_cost_32": _costs(measured["all 32"], measured["none of 32"]),
        "grammar_cost_1_of_32": _costs(measured["one of 32"], measured["none of 32"]),
    }
    rows = {f"{label}, tokens/s ({small.dtype})": numbers for label, numbers in measured.items()} | costs
    finish("grammar", rows, {name: statistics.median(numbers) for name, numbers in costs.items()}, args.out)


def _costs(constrained: list[float], free: list[float]) -> list[float]:
    return [1 - a / b for a, b in zip(constrained, free, strict=True)]


if __name__ == "__main__":
    main()
