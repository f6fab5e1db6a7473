"""PEFT's own `generate` of prefix-tuned tasks, one request after another, each of another task, in bfloat16.

python -m benchmarks.peers.peft_peer MODEL NUM_THREADS
"""

import itertools
import sys

import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import GPT2LMHeadModel

from benchmarks.peers.answering import answer, claim_stdout

NUM_TASKS = 32
NUM_VIRTUAL_TOKENS = 10


def main() -> None:
    folder, num_threads = sys.argv[1:]
    answers = claim_stdout()
    torch.set_num_threads(int(num_threads))
    torch.manual_seed(0)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL_TOKENS, inference_mode=True)
    backbone = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16)
    model = get_peft_model(backbone, config, adapter_name="task-0")
    for number in range(1, NUM_TASKS):
        model.add_adapter(f"task-{number}", config)
    model.eval()
    tasks = itertools.cycle(model.peft_config)

    @torch.inference_mode()
    def generate_one(prompt: list[int], num_new_tokens: int) -> list[int]:
        model.set_adapter(next(tasks))
        input_ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            pad_token_id=model.config.eos_token_id,
        )
        new_token_ids: list[int] = output[0, len(prompt) :].tolist()
        return new_token_ids

    answer(lambda prompts, num_new_tokens: [generate_one(prompt, num_new_tokens) for prompt in prompts], answers)


if __name__ == "__main__":
    main()
