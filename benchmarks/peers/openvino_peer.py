"""OpenVINO GenAI's continuous batching, exported from a GPT-2 by optimum-intel: `bf16`, or `int8` weights by NNCF.

python -m benchmarks.peers.openvino_peer MODEL NUM_THREADS bf16|int8
"""

import sys
import tempfile
from pathlib import Path

import nncf
import openvino as ov
import openvino_genai as genai
from optimum.intel import OVModelForCausalLM

from benchmarks.peers.answering import Prompts, answer, claim_stdout


def export(model: str, precision: str, folder: Path) -> None:
    """Write OpenVINO's form of the checkpoint `model` into `folder`."""
    exported = OVModelForCausalLM.from_pretrained(model, export=True, compile=False, load_in_8bit=False)
    if precision == "int8":
        exported.model = nncf.compress_weights(exported.model, mode=nncf.CompressWeightsMode.INT8_SYM)
    exported.save_pretrained(folder)


def main() -> None:
    model, num_threads, precision = sys.argv[1:]
    answers = claim_stdout()
    with tempfile.TemporaryDirectory(prefix="openvino-") as folder:
        export(model, precision, Path(folder))
        pipeline = genai.ContinuousBatchingPipeline(
            folder,
            genai.SchedulerConfig(),
            "CPU",
            {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": int(num_threads)},
        )

    def generate(prompts: Prompts, num_new_tokens: int) -> list[list[int]]:
        how = genai.GenerationConfig(max_new_tokens=num_new_tokens, ignore_eos=True)
        results = pipeline.generate([ov.Tensor([prompt]) for prompt in prompts], [how] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    answer(generate, answers)


if __name__ == "__main__":
    main()
