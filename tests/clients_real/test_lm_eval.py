"""lm-evaluation-harness: a small local task through `local-completions`, against transformers with the same prefix."""

import json
import subprocess

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from tests.clients_real.conftest import POCKET, PYTHON, measured

MAX_DIFFERENCE = 1e-3
TASK = """
task: pubs
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "name : {{{{name}}}} | eatType : pub\\n"
doc_to_choice: ["{{{{name}}}} is a pub .", "{{{{name}}}} is a restaurant .", "There is no pub ."]
doc_to_target: 0
"""
NAMES = ["Blue Spice", "The Mill", "Cotto", "The Golden Palace"]


def test_a_tasks_scores_are_those_of_transformers(url, tmp_path):
    data = tmp_path / "pubs.jsonl"
    data.write_text("".join(json.dumps({"name": name}) + "\n" for name in NAMES))
    (tmp_path / "pubs.yaml").write_text(TASK.format(path=data))
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"model": "e2e", "base_url": f"{url}/v1/completions", "tokenizer": str(POCKET), "max_length": 512},
        tasks=["pubs"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=6,
        log_samples=True,
    )
    encode = AutoTokenizer.from_pretrained(POCKET).encode
    pairs, scores = [], []
    for sample in results["samples"]["pubs"]:
        for request, (response,) in zip(_requests(sample), sample["resps"], strict=True):
            context, continuation = request
            kept = context.rstrip()
            whole, prompt = encode(context + continuation), encode(kept)
            pairs.append([prompt, whole[len(prompt) :]])
            scores.append(float(response[0]))
    prefix = POCKET / "prefixes" / "e2e.safetensors"
    command = [PYTHON, "tests/clients_real/reference_scores.py", str(POCKET), str(prefix)]
    told = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True, check=True)
    difference = max(abs(ours - theirs) for ours, theirs in zip(scores, json.loads(told.stdout), strict=True))
    measured["lm_eval_max_difference"] = difference
    assert len(scores) == 3 * len(NAMES)
    assert difference == pytest.approx(0, abs=MAX_DIFFERENCE)


def _requests(sample):
    """(context, continuation) of each choice, as the harness asked for it."""
    arguments = sample["arguments"]
    return [(each["arg_0"], each["arg_1"]) for each in arguments.values()] if isinstance(arguments, dict) else arguments
