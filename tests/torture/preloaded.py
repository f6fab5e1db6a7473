"""Runs pytest again and again, each time in a fork that has the large libraries already: they take most of a short run.

For each line of its input, pytest's arguments, it prints pytest's exit code. Imports nothing of the tree it runs in.
"""

import os
import sys

import peft
import pytest
import torch
import transformers

LOADED = (peft, torch, transformers.AutoTokenizer, transformers.GPT2LMHeadModel)
# What is loaded already cannot have its assertions rewritten, which only matters for plugins' own.
OPTIONS = ("-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "--timeout=120")


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            code = int(pytest.ExitCode.TESTS_FAILED)  # also where pytest raises what a test has left open
            try:
                code = int(pytest.main([*OPTIONS, *line.split()]))
            finally:
                sys.stdout.flush()
                os._exit(code)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
