"""Finds the tokenizer beside a model, in the process that reads the model.

Knows transformers. Knows nothing of what the tokenizer is used for.
"""

from transformers import AutoTokenizer


class TokenizerError(ValueError):
    """A checkpoint without a usable tokenizer; the message says what is missing."""


def load_tokenizer(model: str, vocab_size: int) -> str:
    """The tokenizer of a directory or a hub id, for a backbone of `vocab_size`, as the text of a tokenizer.json.

    Raises `TokenizerError`.
    """
    try:
        backend = AutoTokenizer.from_pretrained(model).backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise TokenizerError(f"no tokenizer beside the model {model}: {error}") from error
    if backend.get_vocab_size(with_added_tokens=False) == 0:  # what transformers makes where there is no file
        raise TokenizerError(f"no tokenizer beside the model {model}; expected a tokenizer.json")
    num_tokens = backend.get_vocab_size(with_added_tokens=True)
    if num_tokens > vocab_size:
        raise TokenizerError(f"the tokenizer of {model} has {num_tokens} tokens; the backbone has {vocab_size}")
    return str(backend.to_str())
