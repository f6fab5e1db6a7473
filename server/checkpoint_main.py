"""Reads a model and its tokenizer for the engine, and ends: what transformers takes of memory ends with it.

    python -m server.checkpoint_main FD MODEL DEVICE DTYPE

writes both to the file FD. Where that cannot be it says why on its output, and its exit status is 1.
"""

import os
import select
import signal
import sys
import threading

from transformers.utils.logging import disable_progress_bar

from batching.checkpoint import write
from batching.pretrained import read_checkpoint
from server.tokenizer_loading import load_tokenizer

READER = 1  # the other end of the output is the server's


def end_with_server() -> None:
    hang_up = select.poll()
    hang_up.register(READER, 0)
    hang_up.poll()
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it has nothing to tidy up
    threading.Thread(target=end_with_server, daemon=True).start()
    disable_progress_bar()  # transformers' own, which would stand between the lines of the server's log
    descriptor, model, device, dtype = sys.argv[1:]
    try:
        checkpoint = read_checkpoint(model, device, dtype)
        tokenizer = load_tokenizer(model, checkpoint.vocab_size)
    except (ValueError, OSError, RuntimeError) as error:
        sys.stdout.write(str(error))
        sys.exit(1)
    write((checkpoint, tokenizer), int(descriptor))


if __name__ == "__main__":
    main()
