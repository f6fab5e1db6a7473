"""The fingerprint of a backbone's weights, by which a prefix says what it was trained on.

Knows names and tensors. Knows no model class, so that what serves and what trains can both use it.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """sha256, in hexadecimal, over the stored parameters by name: name, dtype, shape and bytes of each.

    Give it `GPT2LMHeadModel.named_parameters()` of the model in the dtype it is stored in; the tied head is then left
    out, and the order does not matter.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters):
        stored = parameter.detach().cpu().contiguous()
        header = f"{name}|{str(stored.dtype).removeprefix('torch.')}|{','.join(map(str, stored.shape))}"
        digest.update(header.encode())
        digest.update(stored.view(torch.uint8).numpy().data)
    return digest.hexdigest()
