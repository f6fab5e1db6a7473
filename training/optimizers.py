"""The optimizers: AdamW, as the paper has it, and Muon, which moves a matrix along its whole spectrum at once.

Knows modules and their parameters. Knows nothing of schedules or losses.
"""

import torch
from torch.optim import AdamW, Muon, Optimizer


def optimizers_of(name: str, tuned: torch.nn.Module, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """One of `settings.OPTIMIZERS` for all that is trained of a module. With Muon that is AdamW, at the same rate, for
    what is no matrix, and for embeddings, of which a step touches few rows.

    Muon: Keller Jordan 2024 (kellerjordan.github.io/posts/muon), momentum 0.95; its steps are as large as AdamW's
    (Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv 2502.16982).
    """
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    embeddings = {id(module.weight) for module in tuned.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [each for each in trained if name == "muon" and each.ndim == 2 and id(each) not in embeddings]
    by_muon = {id(matrix) for matrix in matrices}
    others = [each for each in trained if id(each) not in by_muon]
    optimizers: list[Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(AdamW(others, lr=learning_rate, weight_decay=weight_decay))
    return optimizers
