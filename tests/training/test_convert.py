"""Conversion: whatever the form, the keys and values are those that its own code computes."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import (
    CartridgeConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config

from prefix_store.errors import InvalidPrefix
from prefix_store.formats import dump, parse
from prefix_store.prefix import Prefix, PromptEmbeddings
from tests.training.conftest import make_model
from training.backbone import FrozenBackbone
from training.convert import convert
from training.errors import NotConvertible
from training.originals import load_weights

N_LAYER, N_HEAD, HEAD_DIM, P = 2, 4, 8, 5


@pytest.fixture
def native(tmp_path: Path) -> Path:
    path = tmp_path / "native.safetensors"
    values = torch.randn(N_LAYER, 2, P, N_HEAD, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    path.write_bytes(dump(values, {"backbone": "0" * 64, "prompt_template": "{inputs}\n"}))
    return path


def tensor_of(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor("past_key_values")
    return tensor


def peft_logits(folder: Path, ids: Tensor) -> Tensor:
    model = PeftModel.from_pretrained(make_model().eval(), str(folder)).eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[:, -ids.shape[1] :]


def cached_logits(past_key_values: Tensor, ids: Tensor) -> Tensor:
    from_cache = [(layer[0].transpose(0, 1)[None], layer[1].transpose(0, 1)[None]) for layer in past_key_values]
    model = make_model().eval()
    cache = model(ids[:, :1], use_cache=True).past_key_values
    cache.reset()
    for index, (keys, values) in enumerate(from_cache):
        cache.update(keys, values, index)
    with torch.no_grad():
        logits: Tensor = model(ids, past_key_values=cache).logits
    return logits


def save_peft(folder: Path, config: object, **how: bool) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(make_model().eval(), config)
    model.save_pretrained(folder, **how)
    return model


IDS = torch.tensor([[5, 17, 200, 31]])


def test_a_peft_folder_that_is_written_computes_what_the_prefix_does_in_peft(native: Path, tmp_path: Path) -> None:
    convert(native, tmp_path / "peft", "peft")
    torch.testing.assert_close(peft_logits(tmp_path / "peft", IDS), cached_logits(tensor_of(native), IDS))


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=16),
        CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=P),
    ],
)
def test_a_prefix_that_peft_saved_computes_the_same_as_ours(config: object, tmp_path: Path) -> None:
    save_peft(tmp_path / "peft", config)
    convert(tmp_path / "peft", tmp_path / "ours.safetensors", "native")
    ours = cached_logits(tensor_of(tmp_path / "ours.safetensors"), IDS)
    torch.testing.assert_close(ours, peft_logits(tmp_path / "peft", IDS))


@pytest.mark.parametrize("named", ["adapter_model.bin", "."])
def test_a_folder_that_peft_saved_without_safetensors_is_read_too(tmp_path: Path, named: str) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    save_peft(tmp_path / "old", config, safe_serialization=False)
    save_peft(tmp_path / "new", config)
    for name, source in (("old", tmp_path / "old" / named), ("new", tmp_path / "new")):
        convert(source, tmp_path / f"{name}.safetensors", "native")
    assert torch.equal(tensor_of(tmp_path / "old.safetensors"), tensor_of(tmp_path / "new.safetensors"))


def test_there_and_back_through_peft_changes_no_bit(native: Path, tmp_path: Path) -> None:
    convert(native, tmp_path / "peft", "peft")
    convert(tmp_path / "peft", tmp_path / "back.safetensors", "native")
    assert torch.equal(tensor_of(tmp_path / "back.safetensors"), tensor_of(native))


def test_a_prefix_may_have_any_name(native: Path, tmp_path: Path) -> None:
    convert(native.rename(tmp_path / "e2e.v1"), tmp_path / "ours.v2", "native")
    assert convert(tmp_path / "ours.v2", tmp_path / "peft", "peft").prompt.num_virtual_tokens == P


def test_there_and_back_through_the_original_form_changes_no_bit(native: Path, tmp_path: Path) -> None:
    convert(native, tmp_path / "original", "original")
    convert(tmp_path / "original", tmp_path / "back.safetensors", "native")
    assert torch.equal(tensor_of(tmp_path / "back.safetensors"), tensor_of(native))
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert (config["preseqlen"], config["mid_dim"]) == (P, P)
    loaded = OriginalPrefix(P, P)
    loaded.load_state_dict(load_weights(tmp_path / "original" / "pytorch_model.bin"))
    torch.testing.assert_close(loaded.keys_and_values(), tensor_of(native))


class OriginalPrefix(torch.nn.Module):
    """What the original code trains, and how it turns it into past key-values: one (key, value) pair a layer."""

    def __init__(self, num_virtual_tokens: int, width: int, deep: bool = False) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(num_virtual_tokens, N_HEAD * HEAD_DIM)
        middle = [torch.nn.Linear(width, width), torch.nn.Tanh()] if deep else []
        self.control_trans = torch.nn.Sequential(
            torch.nn.Linear(N_HEAD * HEAD_DIM, width),
            torch.nn.Tanh(),
            *middle,
            torch.nn.Linear(width, N_LAYER * 2 * N_HEAD * HEAD_DIM),
        )

    def keys_and_values(self) -> Tensor:
        num_virtual_tokens = self.wte.num_embeddings
        with torch.no_grad():
            flat = self.control_trans(self.wte(torch.arange(num_virtual_tokens)[None]))
        split = flat.view(1, num_virtual_tokens, N_LAYER * 2, N_HEAD, HEAD_DIM).permute(2, 0, 3, 1, 4).split(2)
        return torch.stack([layer[:, 0].transpose(1, 2) for layer in split])  # [n_layer, 2, P, H, D]


@pytest.mark.parametrize("deep", [False, True])
def test_an_original_checkpoint_becomes_the_keys_and_values_its_code_computes(
    deep: bool, tmp_path: Path, checkpoint: Path
) -> None:
    torch.manual_seed(2)
    original = OriginalPrefix(P, 16, deep)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    convert(tmp_path / "pytorch_model.bin", tmp_path / "ours.safetensors", "native", model=str(checkpoint))
    torch.testing.assert_close(tensor_of(tmp_path / "ours.safetensors"), original.keys_and_values())


def test_the_originals_without_the_mlp_are_read_too(tmp_path: Path, checkpoint: Path, native: Path) -> None:
    expected = tensor_of(native)
    from_random = expected.permute(2, 0, 1, 3, 4).reshape(-1)  # [P * n_layer * 2 * n_embd]
    from_words = expected.transpose(2, 3).reshape(2 * N_LAYER, 1, N_HEAD, P, HEAD_DIM)
    for values in (from_random, from_words):
        torch.save({"control_trans": values.clone()}, tmp_path / "shallow.bin")
        convert(tmp_path / "shallow.bin", tmp_path / "ours.safetensors", "native", model=str(checkpoint))
        assert torch.equal(tensor_of(tmp_path / "ours.safetensors"), expected)


def test_one_task_of_pefts_multitask_prompt_tuning_becomes_pefts_prompt_tuning(tmp_path: Path) -> None:
    config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, num_tasks=3, num_ranks=2)
    model = save_peft(tmp_path / "many", config)
    convert(tmp_path / "many", tmp_path / "one", "peft", task_index=1)
    with torch.no_grad():
        expected = model.get_prompt(1, task_ids=torch.tensor([1]))[0]
    torch.testing.assert_close(load_file(tmp_path / "one" / "adapter_model.safetensors")["prompt_embeddings"], expected)
    assert peft_logits(tmp_path / "one", IDS).shape == (1, 4, 257)


def test_prompt_embeddings_become_keys_and_values_through_the_backbone(
    tmp_path: Path, checkpoint: Path, backbone: FrozenBackbone
) -> None:
    save_peft(tmp_path / "peft", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    convert(tmp_path / "peft", tmp_path / "ours.safetensors", "native", model=str(checkpoint))
    ours = parse((tmp_path / "ours.safetensors").read_bytes(), backbone.shape, backbone.fingerprint)
    assert isinstance(ours, Prefix)
    assert ours.metadata["backbone"] == backbone.fingerprint
    torch.testing.assert_close(cached_logits(ours.past_key_values, IDS), peft_logits(tmp_path / "peft", IDS))
    uploaded = parse((tmp_path / "peft" / "adapter_model.safetensors").read_bytes(), backbone.shape, None)
    assert isinstance(uploaded, PromptEmbeddings)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"wte2.weight": torch.zeros(1)}, "infix, which depends on the input"),
        ({"lm_head.weight": torch.zeros(1)}, r"expected wte.weight and control_trans"),
        ({"control_trans": torch.zeros(7)}, "does not fit"),
        (
            {
                "wte.weight": torch.zeros(P, 32),
                "control_trans.0.weight": torch.zeros(32, 32),
                "control_trans.0.bias": torch.zeros(32),
            },
            "this one tunes embeddings alone",
        ),
        ({"wte.weight": torch.zeros(P, 32), "control_trans.x.weight": torch.zeros(1)}, "expected wte.weight and"),
        ({"step": 5}, "no state dict"),
        ({5: torch.zeros(1)}, "no state dict"),
        ({"control_trans": torch.zeros(8, 8).to_sparse()}, "no state dict"),
        (
            {
                "wte.weight": torch.zeros(32),
                "control_trans.0.weight": torch.zeros(32, 32),
                "control_trans.0.bias": torch.zeros(32),
            },
            r"wte.weight is \[32\]",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    weights: dict[str, object], complaint: str, tmp_path: Path, checkpoint: Path
) -> None:
    torch.save(weights, tmp_path / "other.bin")
    with pytest.raises(NotConvertible, match=complaint):
        convert(tmp_path / "other.bin", tmp_path / "ours.safetensors", "native", model=str(checkpoint))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [(torch.zeros(0), r"shape \[2, 2, 0, 4, 8\]"), (torch.full((N_LAYER * 2 * N_HEAD * HEAD_DIM,), math.nan), "nan")],
)
def test_what_no_server_would_take_is_not_written(
    values: Tensor, complaint: str, tmp_path: Path, checkpoint: Path
) -> None:
    torch.save({"control_trans": values}, tmp_path / "other.bin")
    with pytest.raises(InvalidPrefix, match=complaint):
        convert(tmp_path / "other.bin", tmp_path / "ours.safetensors", "native", model=str(checkpoint))
    assert not (tmp_path / "ours.safetensors").exists()


def test_more_embeddings_than_the_context_has_positions_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    save_peft(
        tmp_path / "many", MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=300, num_tasks=3)
    )
    with pytest.raises(NotConvertible, match="300 embeddings; the backbone takes 1 to"):
        convert(tmp_path / "many", tmp_path / "out", "native", model=str(checkpoint), task_index=1)


class Unpickled:
    """What a hostile checkpoint would hold: something that runs when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('ran')",))


def test_a_checkpoint_never_runs_code(tmp_path: Path, checkpoint: Path) -> None:
    torch.save({"wte.weight": Unpickled()}, tmp_path / "hostile.bin")
    with pytest.raises(NotConvertible, match="no checkpoint of tensors alone"):
        convert(tmp_path / "hostile.bin", tmp_path / "ours.safetensors", "native", model=str(checkpoint))


def test_what_cannot_be_converted_says_why(tmp_path: Path, native: Path) -> None:
    with pytest.raises(NotConvertible, match="expected a file, or a folder with"):
        convert(tmp_path, tmp_path / "out", "native")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    save_file({"prompt_embeddings": torch.zeros(P, 32)}, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(NotConvertible, match=r"adapter_config\.json cannot be read"):
        convert(tmp_path / "peft", tmp_path / "out", "native")
    with pytest.raises(NotConvertible, match="no form 'onnx'; there are native, peft, original"):
        convert(native, tmp_path / "out", "onnx")
    with pytest.raises(NotConvertible, match="holds one task"):
        convert(native, tmp_path / "out", "native", task_index=0)
    torch.save({"control_trans": torch.zeros(7)}, tmp_path / "alone.bin")
    with pytest.raises(NotConvertible, match="name the backbone with --model"):
        convert(tmp_path / "alone.bin", tmp_path / "out", "native")
    save_peft(tmp_path / "lora", LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True))
    with pytest.raises(NotConvertible, match="holds LORA; expected prefix tuning"):
        convert(tmp_path / "lora", tmp_path / "out", "native")
    save_peft(tmp_path / "many", MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, num_tasks=3))
    with pytest.raises(NotConvertible, match="choose one with --task-index 0 to 2"):
        convert(tmp_path / "many", tmp_path / "out", "peft")
    with pytest.raises(NotConvertible, match="only the backbone can make keys and values"):
        convert(tmp_path / "many", tmp_path / "out", "native", task_index=2)
    config = json.loads((tmp_path / "many" / "adapter_config.json").read_text())
    (tmp_path / "many" / "adapter_config.json").write_text(json.dumps(config | {"num_attention_heads": None}))
    with pytest.raises(NotConvertible, match="does not tell the backbone's layers, heads and width"):
        convert(tmp_path / "many", tmp_path / "out", "peft", task_index=2)


def test_a_prefix_is_not_written_as_that_of_another_model(tmp_path: Path, native: Path) -> None:
    config = GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=257)
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(NotConvertible, match=r"of 2 layers and 4 heads of 8, and .*other has 3 layers"):
        convert(native, tmp_path / "out", "peft", model=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()
