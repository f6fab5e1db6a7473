"""transformers' `generate` over one static batch, in bfloat16.

python -m benchmarks.peers.transformers_peer MODEL NUM_THREADS
"""

import sys

import torch
from transformers import GPT2LMHeadModel

from benchmarks.peers.answering import Prompts, answer, claim_stdout


def main() -> None:
    folder, num_threads = sys.argv[1:]
    answers = claim_stdout()
    torch.set_num_threads(int(num_threads))
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, num_new_tokens: int) -> list[list[int]]:
        input_ids = torch.tensor(prompts)
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            pad_token_id=model.config.eos_token_id,
        )
        new_token_ids: list[list[int]] = output[:, input_ids.shape[1] :].tolist()
        return new_token_ids

    answer(generate, answers)


if __name__ == "__main__":
    main()
