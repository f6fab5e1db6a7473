"""vLLM's CPU build, in bfloat16, without its cache of earlier prompts.

python -m benchmarks.peers.vllm_cpu_peer MODEL NUM_THREADS
"""

import os
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

from benchmarks.peers.answering import Prompts, answer, claim_stdout

MAX_MODEL_LEN = 256


def main() -> None:
    model, num_threads = sys.argv[1:]
    if "libiomp5" not in os.environ.get("LD_PRELOAD", ""):  # as vLLM's guide for CPUs has it
        os.environ["LD_PRELOAD"] = str(Path(sys.prefix, "lib", "libiomp5.so"))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.vllm_cpu_peer", *sys.argv[1:]])
    answers = claim_stdout()
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # within this process
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{int(num_threads) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    }
    llm = LLM(
        model,
        dtype="bfloat16",
        max_model_len=MAX_MODEL_LEN,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )

    def generate(prompts: Prompts, num_new_tokens: int) -> list[list[int]]:
        how = SamplingParams(temperature=0, max_tokens=num_new_tokens, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    answer(generate, answers)


if __name__ == "__main__":
    main()
