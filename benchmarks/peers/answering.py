"""A peer's end of the pipes: a line that says ready, then one line of JSON for each line of JSON that it is asked.

Knows neither what computes nor who asks, and needs the standard library alone: peers run in other environments.
"""

import json
import os
import sys
import time
from collections.abc import Callable

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]
"""Prompts and how many new tokens each gets -> the new tokens of each, greedy, whatever the end-of-text token is."""


def claim_stdout() -> int:
    """A descriptor of what was standard output; what libraries print from now on goes to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def answer(generate: Generate, answers: int) -> None:
    """Until standard input ends. `{"prompts": [[464, …], …], "num_new_tokens": 64}` asks; seconds and tokens answer."""
    with os.fdopen(answers, "w") as stdout:
        print("ready", file=stdout, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            started_at = time.perf_counter()
            new_token_ids = generate(asked["prompts"], asked["num_new_tokens"])
            seconds = time.perf_counter() - started_at
            lengths = [len(each) for each in new_token_ids]
            assert lengths == [asked["num_new_tokens"]] * len(asked["prompts"]), lengths
            print(json.dumps({"seconds": seconds, "num_tokens": sum(lengths)}), file=stdout, flush=True)
