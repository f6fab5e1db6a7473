"""Feeds the header's check what libFuzzer makes of real files: nothing but `InvalidPrefix` may come out of it.

`python -m tests.torture.fuzz_header CORPUS -runs=N`: libFuzzer's own options, in a process of its own since it ends
with the process. Coverage guides it: it looks for bytes that take new ways through `prefix_store.header`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["prefix_store.header"]):
    from tests.prefix_store.test_header import refuses_or_reads


def main() -> None:
    atheris.Setup(sys.argv, refuses_or_reads)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
