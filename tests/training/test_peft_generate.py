"""Whether PEFT's own `generate` can be trusted with the pinned transformers.

With transformers 5.24 its cached form silently drops the prefix. Nothing here serves or evaluates by it; when the pins
move, this says whether users who compare with PEFT will be misled.
"""

import torch
from peft import PrefixTuningConfig, get_peft_model

from tests.batching.support import make_model, make_prompt


@torch.no_grad()
def test_pefts_cached_generate_says_what_its_forward_says():
    model = get_peft_model(make_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)).eval()
    model.prompt_encoder["default"].embedding.weight.mul_(3.0)
    text = torch.tensor([make_prompt(9)])
    generated = model.generate(
        input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    for _ in range(12):
        logits = model(input_ids=text).logits[0, -1]
        logits[model.config.eos_token_id] = -torch.inf
        text = torch.cat((text, logits.argmax()[None, None]), dim=1)
    assert generated.tolist() == text.tolist()
