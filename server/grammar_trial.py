"""A process in which grammars are tried: whatever a hostile one does to it, the server only starts another.

    python -m server.grammar_trial

Reads lines of JSON, first the tokenizer, then grammars; answers each grammar by a line. A grammar that takes too long
or too much memory, or overflows the stack, ends the process instead. Knows the compiler and the heap, and imports
nothing else of ours: the process is small and starts at once.
"""

import json
import resource
import signal
import sys
import threading
from pathlib import Path

from server.grammar_compiler import Grammar, GrammarCompiler, GrammarError
from server.heap import give_back_what_is_free

MAX_SECONDS = 1.0  # of processor time, so that a busy machine refuses nothing that an idle one takes
MAX_DATA_BYTES = 512 << 20
MAX_GRAMMAR_BYTES = 16 << 20
STACK_BYTES = 1 << 20  # an eighth of what the server's own threads have
STATM = Path("/proc/self/statm")  # where there is none, time alone is the bound


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    threading.stack_size(STACK_BYTES)
    tried = threading.Thread(target=_try_all)
    tried.start()
    tried.join()


def _try_all() -> None:
    made_of = json.loads(sys.stdin.readline())
    compiler: GrammarCompiler | None = None
    for line in sys.stdin:
        try:
            compiler = compiler or GrammarCompiler(**made_of)
            error = _trial(compiler, Grammar(**json.loads(line)))
        except GrammarError as unreadable:
            error = str(unreadable)
        sys.stdout.write(json.dumps({"error": error}) + "\n")
        sys.stdout.flush()


def _trial(compiler: GrammarCompiler, grammar: Grammar) -> str | None:
    """What is wrong with a grammar."""
    give_back_what_is_free()  # else this one could grow into what the last one left
    num_bytes_before = _num_resident_bytes()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # the signal ends the process: no library holds it up
    try:
        matcher = compiler.compile(grammar)
    except GrammarError as error:
        return str(error)
    except MemoryError:
        return "it takes too much memory"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    num_bytes = _num_resident_bytes() - num_bytes_before
    del matcher
    return None if num_bytes <= MAX_GRAMMAR_BYTES else f"it takes {num_bytes >> 20} MiB; expected at most 16"


def _num_resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else 0


if __name__ == "__main__":
    main()
