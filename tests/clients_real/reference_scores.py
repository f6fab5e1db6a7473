"""What transformers itself says: the log-likelihood of each continuation, token ids given, prefix as cache.

Run by the server's Python: reads `[[context ids, continuation ids], …]` and prints their sums, both as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DynamicCache, GPT2LMHeadModel


@torch.no_grad()
def main(model_path: str, prefix_path: str) -> None:
    model = GPT2LMHeadModel.from_pretrained(model_path, dtype=torch.float32).eval()
    kv = load_file(prefix_path)["past_key_values"].float()  # [n_layer, 2, T, n_head, head_dim]
    scores = []
    for context, continuation in json.load(sys.stdin):
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(kv):
            cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
        logits = model(torch.tensor([context + continuation]), past_key_values=cache).logits[0]
        logprobs = logits[len(context) - 1 : -1].log_softmax(-1)
        scores.append(logprobs[range(len(continuation)), continuation].sum().item())
    json.dump(scores, sys.stdout)


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), str(Path(sys.argv[2])))
