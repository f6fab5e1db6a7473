"""The module and the loss: PEFT's own forward is the oracle."""

import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from prefix_store.fingerprint import fingerprint
from tests.training.conftest import make_model, quick
from training.backbone import FrozenBackbone, load_backbone
from training.encoding import IGNORED, Encoded, Pair, encode, pad, shuffled
from training.errors import BadBackbone, BadExamples, BadSettings
from training.examples import Example
from training.prefix_tuning import TunedPrefix, activations_of, losses, peft_config
from training.settings import PRESETS, Settings, make_settings
from training.task_training import TaskTraining

EXAMPLES = [Example("red cup", ("a small book", "the lamp")), Example("blue", ("near the plate and the lamp",))]


def encoded(backbone: FrozenBackbone, settings: Settings | None = None) -> Encoded:
    chosen = settings or quick()
    return encode(EXAMPLES, backbone, chosen.prompt_template, chosen.num_virtual_tokens)


def test_the_loss_is_that_of_pefts_own_forward(backbone: FrozenBackbone) -> None:
    settings = quick(num_virtual_tokens=5)
    tuned = TunedPrefix(backbone, settings)
    oracle = get_peft_model(make_model().eval(), peft_config(backbone.shape, settings)).eval()
    oracle.prompt_encoder["default"].load_state_dict(tuned.encoder.state_dict())
    batch = pad(encoded(backbone).pairs, backbone.device)
    labels = F.pad(batch.labels, (1, 0), value=IGNORED)[:, :-1]  # transformers shifts them itself
    expected = oracle(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    found = losses(backbone, [tuned()], [0] * len(batch.ids), batch) / (batch.labels != IGNORED).sum()
    torch.testing.assert_close(found[0], expected)


def test_rows_of_prefixes_of_different_lengths_each_have_the_loss_they_have_alone(backbone: FrozenBackbone) -> None:
    tuned = [TunedPrefix(backbone, quick(num_virtual_tokens=length, seed=length)) for length in (1, 4, 9)]
    pairs = encoded(backbone).pairs
    together = losses(backbone, [prefix() for prefix in tuned], [2, 0, 1], pad(pairs, backbone.device))
    for owner, pair in zip([2, 0, 1], pairs, strict=True):
        alone = losses(backbone, [tuned[owner]()], [0], pad([pair], backbone.device))
        torch.testing.assert_close(together[owner], alone[0], rtol=1e-5, atol=1e-5)


def test_only_the_answers_tokens_count(backbone: FrozenBackbone) -> None:
    prefix = TunedPrefix(backbone, quick())()
    (pair, *_) = encoded(backbone).pairs
    found = losses(backbone, [prefix], [0], pad([pair], backbone.device))
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.permute(0, 1, 3, 2, 4)):  # [2, H, P, D]
        cache.update(keys[None], values[None], layer)
    logits = backbone.model(torch.tensor([[*pair.prompt, *pair.answer]]), past_key_values=cache).logits[0]
    answer_logits = logits[len(pair.prompt) - 1 : -1]
    torch.testing.assert_close(found[0], F.cross_entropy(answer_logits, torch.tensor(pair.answer), reduction="sum"))


@pytest.mark.parametrize("mlp_width", [16, 0])
def test_a_prefix_can_start_as_the_activations_of_real_words(backbone: FrozenBackbone, mlp_width: int) -> None:
    tuned = TunedPrefix(backbone, quick(num_virtual_tokens=6, mlp_width=mlp_width, init_text="the cup"))
    cache = backbone.model(torch.tensor([backbone.token_ids("the cup")[:6]]), use_cache=True).past_key_values
    expected = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]).transpose(2, 3)
    torch.testing.assert_close(tuned(), expected, rtol=1e-4, atol=1e-4)


def test_words_that_are_fewer_than_the_virtual_tokens_are_repeated(backbone: FrozenBackbone) -> None:
    repeated, written_out = (activations_of(backbone, text, 7) for text in ("abc", "abcabca"))
    assert torch.equal(repeated, written_out)
    with pytest.raises(BadSettings, match="init_text is empty"):
        activations_of(backbone, "", 7)


def test_the_module_has_the_papers_shape_and_size(backbone: FrozenBackbone) -> None:
    module = TunedPrefix(backbone, quick(num_virtual_tokens=5, mlp_width=16))
    shapes = {name: tuple(parameter.shape) for name, parameter in module.encoder.named_parameters()}
    assert shapes == {
        "embedding.weight": (5, 32),
        "transform.0.weight": (16, 32),
        "transform.0.bias": (16,),
        "transform.2.weight": (2 * 2 * 32, 16),
        "transform.2.bias": (2 * 2 * 32,),
    }
    assert module().shape == (2, 2, 5, 4, 8)


def test_the_same_seed_makes_the_same_module_and_leaves_the_callers_randomness_alone(backbone: FrozenBackbone) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (TunedPrefix(backbone, quick(seed=seed))() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_pair_is_the_templates_prompt_and_the_answer_with_its_end(backbone: FrozenBackbone) -> None:
    pairs = encoded(backbone).pairs
    assert len(pairs) == 3
    assert backbone.tokenizer.decode(pairs[0].prompt) == " red cup <|endoftext|>"
    assert backbone.tokenizer.decode(pairs[0].answer) == " a small book<|endoftext|>"


def test_pairs_that_do_not_fit_beside_the_prefix_are_left_out_and_counted(backbone: FrozenBackbone) -> None:
    long, short = Example("x" * 100, ("y" * 30,)), Example("x", ("y",))
    found = encode([long, short], backbone, "{inputs}", 3)
    assert (len(found.pairs), found.num_too_long) == (1, 1)
    with pytest.raises(BadExamples, match="none of 1 pairs has 1 to 125 tokens"):
        encode([long], backbone, "{inputs}", 3)


def test_every_epoch_has_an_order_of_its_own_and_always_the_same() -> None:
    pairs = [Pair((i,), (i,)) for i in range(20)]
    assert shuffled(pairs, 3, 0, 1) == shuffled(pairs, 3, 0, 1)
    assert shuffled(pairs, 3, 0, 1) != shuffled(pairs, 3, 0, 2)
    batches = shuffled(pairs, 3, 0, 1)
    assert sorted(map(len, batches)) == [2, 3, 3, 3, 3, 3, 3]
    assert sorted(chain(*batches), key=lambda pair: pair.prompt) == pairs


def test_a_batch_has_rows_of_like_length_and_the_lengths_come_in_no_order() -> None:
    pairs = [Pair((1,), (1,) * length) for length in range(1, 65)]
    batches = shuffled(pairs, 8, 0, 0)
    assert all(max(map(len_of, batch)) - min(map(len_of, batch)) == 7 for batch in batches)
    assert batches != sorted(batches, key=lambda batch: len_of(batch[0]))


def len_of(pair: Pair) -> int:
    return pair.num_tokens


def test_the_learning_rate_goes_up_and_down_as_transformers_linear_schedule_does(backbone: FrozenBackbone) -> None:
    settings = quick(max_steps=12, warmup_steps=0, batch_size=1)
    training = TaskTraining("task", TunedPrefix(backbone, settings), settings, encoded(backbone), None)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 12)
    for _ in range(12):
        assert training.learning_rate == pytest.approx(schedule.get_last_lr()[0])
        training.update(0.0)
        optimizer.step()
        schedule.step()


def test_warm_up_never_begins_with_a_step_of_nothing(backbone: FrozenBackbone) -> None:
    settings = quick(max_steps=8, warmup_steps=3, learning_rate=1.0)
    training = TaskTraining("task", TunedPrefix(backbone, settings), settings, encoded(backbone), None)
    rates = []
    for _ in range(8):
        rates.append(training.learning_rate)
        training.update(0.0)
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5])


def test_the_presets_are_the_papers_numbers() -> None:
    told = {
        name: (s.learning_rate, s.epochs, s.batch_size, s.num_virtual_tokens)
        for name in ("e2e", "webnlg", "dart")
        for s in [make_settings(name, {})]
    }
    assert told == {"e2e": (8e-5, 5, 10, 5), "webnlg": (5e-5, 5, 5, 5), "dart": (5e-5, 10, 5, 10)}
    low = make_settings("low-data", {"max_steps": 200})
    assert (low.num_virtual_tokens, low.learning_rate, low.batch_size, low.max_steps) == (6, 5e-5, 10, 200)
    assert low.init_text == "table-to-text:"
    assert make_settings("low-data", {"epochs": 20}).max_steps is None, "what is given wins"
    assert make_settings("low-data", {"epochs": None}).max_steps == 400
    assert make_settings("low-data", {"epochs": 20, "max_steps": 7}).max_steps == 7
    assert all(make_settings(name, {}).mlp_width == 512 for name in PRESETS)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"num_virtual_token": 5}, "no setting num_virtual_token; there are num_virtual_tokens"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"epochs": "five"}, "epochs is 'five'; expected a whole number"),
        ({"epochs": True}, "expected a whole number"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected more than 0"),
        ({"prompt_template": "no place"}, r"expected exactly one \{inputs\}"),
        ({"init_text": 5}, "expected text"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; expected at least 0"),
        ({"seed": 2**64}, "expected less than 2\\^64"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_by_its_name(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadSettings, match=complaint):
        make_settings("e2e", given)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(BadSettings, match="no preset 'xsum'; there are e2e"):
        make_settings("xsum", {})


def test_a_loaded_backbone_is_frozen_and_knows_the_fingerprint_of_what_was_stored(backbone: FrozenBackbone) -> None:
    assert backbone.fingerprint == fingerprint(make_model().named_parameters())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert (backbone.name, backbone.model.training, backbone.shape.n_embd) == ("tiny", False, 32)


def test_what_is_no_gpt2_is_refused(tmp_path: object) -> None:
    with pytest.raises(BadBackbone, match="no model could be read"):
        load_backbone(f"{tmp_path}/nothing")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers makes an empty one, which reads every text as nothing."""
    make_model().save_pretrained(tmp_path)
    with pytest.raises(BadBackbone, match=r"no tokenizer beside the model .*expected a tokenizer\.json"):
        load_backbone(tmp_path)


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    make_model().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(BadBackbone, match="names no end-of-text token"):
        load_backbone(tmp_path)
    larger = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer, eos_token="<|endoftext|>")
    larger.add_tokens(["one more"])
    larger.save_pretrained(tmp_path)
    with pytest.raises(BadBackbone, match="has 258 tokens; the backbone has 257"):
        load_backbone(tmp_path)


def test_weights_that_are_cut_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BadBackbone, match="could not be loaded"):
        load_backbone(tmp_path / "cut")


def test_bfloat16_stays_near_float32(backbone: FrozenBackbone) -> None:
    half = FrozenBackbone(
        "tiny", backbone.model, backbone.tokenizer, backbone.shape, backbone.fingerprint, precision="bfloat16"
    )
    prefix, batch = TunedPrefix(backbone, quick())(), pad(encoded(backbone).pairs, backbone.device)
    exact, near = (losses(which, [prefix], [0, 0, 0], batch) for which in (backbone, half))
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.5)
