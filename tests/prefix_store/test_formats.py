"""Files of ours and of PEFT's become prefixes, exactly; what does not fit the backbone is refused with a reason."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    CartridgeConfig,
    MultitaskPromptTuningConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import save
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from prefix_store.errors import InvalidPrefix
from prefix_store.formats import MAX_MAGNITUDE, dump, max_file_bytes, parse
from prefix_store.prefix import Prefix, PromptEmbeddings
from tests.prefix_store.support import BACKBONE, SHAPE, keys_and_values, native_file

T = 3
FINGERPRINT = BACKBONE.fingerprint
CAUSAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": T}
OURS = {"format": "polyprefix/1"}
WIDTH = SHAPE.n_layer * 2 * SHAPE.n_embd


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_layer": SHAPE.n_layer, "n_head": SHAPE.n_head, "n_embd": SHAPE.n_embd, "n_positions": SHAPE.n_positions}
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def saved_by_peft(config: PeftConfig, folder: Path) -> tuple[torch.nn.Module, bytes]:
    """A random adapter on the tiny GPT-2, and the file that `save_pretrained` wrote of it."""
    model = get_peft_model(tiny_gpt2(), config).eval()
    for parameter in model.prompt_encoder.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model, (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_dump_writes_parse_reads(dtype: torch.dtype) -> None:
    past_key_values = keys_and_values(dtype=dtype)
    body = dump(past_key_values, {"steps": "12", "backbone": FINGERPRINT})
    prefix = parse(body, SHAPE, FINGERPRINT)
    assert isinstance(prefix, Prefix)
    assert prefix.past_key_values.dtype == dtype
    assert torch.equal(prefix.past_key_values, past_key_values)
    assert prefix.metadata == {"steps": "12", "backbone": FINGERPRINT}
    assert prefix.kind == "prefix"
    assert prefix.num_virtual_tokens == T
    assert prefix.revision == hashlib.sha256(body).hexdigest()


def test_dump_gives_the_same_bytes_in_whatever_order_the_facts_come() -> None:
    facts = {"b": "1", "a": "2", "ü": "3"}
    backwards = dict(reversed(facts.items()))
    assert dump(keys_and_values(), facts) == dump(keys_and_values(), backwards)


def test_dump_takes_a_view_as_it_looks_and_not_as_it_lies_in_memory() -> None:
    view = keys_and_values().transpose(2, 3).contiguous().transpose(2, 3)
    assert dump(view, {}) == dump(keys_and_values(), {})


def test_dump_refuses_what_could_not_be_read_back() -> None:
    with pytest.raises(InvalidPrefix, match="float64"):
        dump(keys_and_values(dtype=torch.float64), {})
    with pytest.raises(InvalidPrefix, match="metadata"):
        dump(keys_and_values(), {"note": "x" * 70_000})


def test_a_native_file_of_the_library_keeps_its_own_hash() -> None:
    body = save({"past_key_values": keys_and_values()}, metadata={**OURS, "b": "1", "a": "2"})
    prefix = parse(body, SHAPE, FINGERPRINT)
    assert isinstance(prefix, Prefix)
    assert prefix.revision == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(**CAUSAL),
        PrefixTuningConfig(**CAUSAL, prefix_projection=True, encoder_hidden_size=7),
        CartridgeConfig(**CAUSAL),
    ],
    ids=["prefix tuning", "prefix tuning with its projection", "cartridge"],
)
def test_pefts_keys_and_values_give_pefts_logits_bit_for_bit(config: PeftConfig, tmp_path: Path) -> None:
    model, body = saved_by_peft(config, tmp_path)
    prefix = parse(body, SHAPE, FINGERPRINT)
    assert isinstance(prefix, Prefix)
    assert prefix.kind == "prefix_tuning"

    input_ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits
        actual = tiny_gpt2()(input_ids=input_ids, past_key_values=as_cache(prefix.past_key_values)).logits
    assert torch.equal(actual, expected)


def as_cache(past_key_values: Tensor) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past_key_values.transpose(2, 3)):  # [T, H, D] -> [H, T, D]
        cache.update(key[None], value[None], layer)
    return cache


def test_a_converted_file_is_the_native_file_of_its_revision(tmp_path: Path) -> None:
    _, body = saved_by_peft(PrefixTuningConfig(**CAUSAL), tmp_path)
    converted = parse(body, SHAPE, FINGERPRINT)
    assert isinstance(converted, Prefix)
    native = parse(dump(converted.past_key_values, converted.metadata), SHAPE, FINGERPRINT)
    assert isinstance(native, Prefix)
    assert native.revision == converted.revision
    assert torch.equal(native.past_key_values, converted.past_key_values)


@pytest.mark.parametrize(
    "config",
    [PromptTuningConfig(**CAUSAL), PromptEncoderConfig(**CAUSAL, encoder_hidden_size=7)],
    ids=["prompt tuning", "P-tuning"],
)
def test_pefts_soft_prompts_are_embeddings_to_be_compiled(config: PeftConfig, tmp_path: Path) -> None:
    model, body = saved_by_peft(config, tmp_path)
    prompt = parse(body, SHAPE, FINGERPRINT)
    assert isinstance(prompt, PromptEmbeddings)
    assert prompt.kind == "prompt_tuning"
    assert prompt.num_virtual_tokens == T
    assert torch.equal(prompt.embeddings, model.get_prompt(batch_size=1)[0])


def test_multitask_prompt_tuning_is_refused_and_says_that_one_task_is_expected(tmp_path: Path) -> None:
    _, body = saved_by_peft(MultitaskPromptTuningConfig(**CAUSAL, num_tasks=4), tmp_path)
    with pytest.raises(InvalidPrefix, match="a file for one task"):
        parse(body, SHAPE, FINGERPRINT)


def with_one(value: float) -> bytes:
    past_key_values = keys_and_values()
    past_key_values[1, 0, 1, 0, 3] = value
    return dump(past_key_values, {})


def peft_file(*shape: int) -> bytes:
    return save({"prompt_embeddings": torch.zeros(shape)})


def ours(tensors: dict[str, Tensor], **metadata: str) -> bytes:
    return save(tensors, metadata={**OURS, **metadata})


def heads(num: int, size: int) -> Tensor:
    return torch.zeros(SHAPE.n_layer, 2, T, num, size)


BAD = {
    "a NaN": (with_one(float("nan")), "finite"),
    "an infinity": (with_one(float("inf")), "finite"),
    "a negative infinity": (with_one(float("-inf")), "finite"),
    "1e38": (with_one(1e38), "1e\\+38"),
    "7e4, which fp16 does not hold": (with_one(7e4), "70000"),
    "-7e4": (with_one(-7e4), "-70000"),
    "a NaN in PEFT's form": (save({"prompt_embeddings": torch.full((T, WIDTH), float("nan"))}), "finite"),
    "a NaN in an embedding": (save({"prompt_embeddings": torch.full((T, SHAPE.n_embd), float("nan"))}), "finite"),
    "a layer too few": (dump(keys_and_values()[:1], {}), "n_layer 2"),
    "a layer too many": (dump(keys_and_values()[[0, 1, 1]], {}), "n_layer 2"),
    "other heads of the same width": (dump(heads(4, 4), {}), "n_head 2"),
    "keys only": (dump(keys_and_values()[:, :1], {}), "n_layer 2, 2"),
    "four axes": (dump(keys_and_values()[0], {}), "n_layer 2"),
    "as many virtual tokens as the context": (dump(keys_and_values(num_virtual_tokens=64), {}), "1 to 63"),
    "0 virtual tokens": (dump(keys_and_values(num_virtual_tokens=0), {}), "positive"),
    "PEFT's form of another backbone": (peft_file(T, WIDTH + 1), f"{WIDTH}"),
    "PEFT's form, as many as the context": (peft_file(64, WIDTH), "1 to 63"),
    "PEFT's form with three axes": (peft_file(1, T, WIDTH), "num_virtual_tokens"),
    "another backbone's fingerprint": (ours({"past_key_values": heads(2, 8)}, backbone="cd" * 32), "cdcdcd"),
    "an empty fingerprint": (ours({"past_key_values": heads(2, 8)}, backbone=""), "made for"),
    "no format": (save({"past_key_values": heads(2, 8)}), "polyprefix/1"),
    "the next format": (save({"past_key_values": heads(2, 8)}, metadata={"format": "polyprefix/2"}), "polyprefix/2"),
    "no tensor": (save({}), "0 tensors"),
    "two tensors": (ours({"past_key_values": heads(2, 8), "more": torch.zeros(1)}), "2 tensors"),
    "a name with ..": (ours({"../../etc/passwd": heads(2, 8)}), "named past_key_values"),
    "a name with NUL": (ours({"past_key_values\0": heads(2, 8)}), "named past_key_values"),
    "an empty name": (ours({"": heads(2, 8)}), "named past_key_values"),
    "a LoRA": (save({"base_model.model.h.0.attn.c_attn.lora_A.weight": torch.zeros(8, 16)}), "named past_key_values"),
}


@pytest.mark.parametrize(("body", "reason"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_refused_and_says_why(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidPrefix, match=reason) as refused:
        parse(body, SHAPE, FINGERPRINT)
    assert len(str(refused.value)) < 400


def test_the_largest_magnitude_itself_is_taken() -> None:
    assert isinstance(parse(with_one(-MAX_MAGNITUDE), SHAPE, FINGERPRINT), Prefix)


def test_a_file_that_names_a_backbone_is_read_where_no_backbone_is_known() -> None:
    assert isinstance(parse(native_file(), SHAPE, None), Prefix)


def test_the_largest_prefix_is_not_larger_than_the_largest_file() -> None:
    body = dump(keys_and_values(num_virtual_tokens=SHAPE.n_positions - 1), {"note": "x" * 65_000})
    assert isinstance(parse(body, SHAPE, None), Prefix)
    assert len(body) <= max_file_bytes(SHAPE)
    assert max_file_bytes(replace(SHAPE, n_positions=65)) == max_file_bytes(SHAPE) + WIDTH * 4
