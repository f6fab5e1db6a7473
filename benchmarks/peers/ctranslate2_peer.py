"""CTranslate2 with int8 weights, from its own converter.

It takes tokens by their texts and wants as many of them as the model has: here each token's text is its number.

    python -m benchmarks.peers.ctranslate2_peer MODEL NUM_THREADS
"""

import sys
import tempfile
from pathlib import Path

import ctranslate2
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

from benchmarks.peers.answering import Prompts, answer, claim_stdout


def with_numbers_as_texts(model: Path, folder: Path) -> None:
    """Make `folder` the checkpoint `model` with another tokenizer."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(model / name)
    texts = {str(token_id): token_id for token_id in range(AutoConfig.from_pretrained(model).vocab_size)}
    last = str(len(texts) - 1)
    tokenizer = Tokenizer(WordLevel(texts, unk_token=last))
    special = {"bos_token": last, "eos_token": last, "unk_token": last}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def load(model: Path, num_threads: int) -> ctranslate2.Generator:
    with tempfile.TemporaryDirectory(prefix="ctranslate2-") as temporary:
        checkpoint, converted = Path(temporary, "checkpoint"), Path(temporary, "converted")
        checkpoint.mkdir()
        with_numbers_as_texts(model, checkpoint)
        TransformersConverter(str(checkpoint)).convert(str(converted), quantization="int8")
        return ctranslate2.Generator(str(converted), inter_threads=1, intra_threads=num_threads)


def main() -> None:
    model, num_threads = sys.argv[1:]
    answers = claim_stdout()
    generator = load(Path(model), int(num_threads))

    def generate(prompts: Prompts, num_new_tokens: int) -> list[list[int]]:
        results = generator.generate_batch(
            [[str(token_id) for token_id in prompt] for prompt in prompts],
            max_length=num_new_tokens,
            min_length=num_new_tokens,  # or the end-of-text token would end it
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]

    answer(generate, answers)


if __name__ == "__main__":
    main()
