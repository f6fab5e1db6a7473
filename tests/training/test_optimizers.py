"""Which optimizer moves what, and how far."""

import pytest
import torch
from torch.optim import AdamW, Muon

from tests.training.conftest import quick
from training.backbone import FrozenBackbone
from training.errors import BadSettings
from training.optimizers import optimizers_of
from training.prefix_tuning import TunedPrefix
from training.settings import make_settings


def test_without_the_mlp_each_heads_keys_and_values_are_a_matrix_for_muon(backbone: FrozenBackbone) -> None:
    tuned = TunedPrefix(backbone, quick(num_virtual_tokens=5, mlp_width=0))
    (optimizer,) = optimizers_of("muon", tuned, learning_rate=0.1, weight_decay=0.0)
    assert isinstance(optimizer, Muon)
    assert [tuple(each.shape) for each in optimizer.param_groups[0]["params"]] == [(5, 8)] * (2 * 2 * 4)
    assert tuned().shape == (2, 2, 5, 4, 8)


def test_of_the_mlp_muon_moves_the_matrices_and_adamw_the_rest(backbone: FrozenBackbone) -> None:
    tuned = TunedPrefix(backbone, quick(num_virtual_tokens=5, mlp_width=16))
    muon, adamw = optimizers_of("muon", tuned, learning_rate=0.1, weight_decay=0.0)
    assert isinstance(adamw, AdamW)
    names = {id(parameter): name for name, parameter in tuned.named_parameters()}
    assert {names[id(each)] for each in muon.param_groups[0]["params"]} == {
        "encoder.transform.0.weight",
        "encoder.transform.2.weight",
    }
    assert {names[id(each)] for each in adamw.param_groups[0]["params"]} == {
        "encoder.embedding.weight",
        "encoder.transform.0.bias",
        "encoder.transform.2.bias",
    }


def test_adamw_has_all(backbone: FrozenBackbone) -> None:
    tuned = TunedPrefix(backbone, quick(mlp_width=0))
    (optimizer,) = optimizers_of("adamw", tuned, learning_rate=0.1, weight_decay=0.5)
    assert isinstance(optimizer, AdamW)
    assert len(optimizer.param_groups[0]["params"]) == len(list(tuned.parameters()))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_step_of_muon_is_as_large_as_one_of_adamw_and_moves_all_directions_alike() -> None:
    """0.2 of the rate in the root mean square, though the gradient has one large direction and one small one."""
    torch.manual_seed(0)
    matrix = torch.nn.Linear(32, 64, bias=False)
    before = matrix.weight.detach().clone()
    (optimizer,) = optimizers_of("muon", matrix, learning_rate=0.5, weight_decay=0.0)
    left, right = torch.linalg.qr(torch.randn(64, 2))[0], torch.linalg.qr(torch.randn(32, 2))[0]
    matrix.weight.grad = left @ torch.diag(torch.tensor([10.0, 2.0])) @ right.T
    optimizer.step()
    change = before - matrix.weight.detach()
    along = (left.T @ change @ right).diagonal() / (0.5 * 0.2 * 64**0.5)
    assert along.tolist() == pytest.approx([1, 1], abs=0.35), "Newton and Schulz's five steps come so near"


def test_an_optimizer_that_there_is_not_is_refused() -> None:
    with pytest.raises(BadSettings, match="no optimizer 'sgd'; there are adamw, muon"):
        make_settings(None, {"optimizer": "sgd"})
