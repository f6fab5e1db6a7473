"""Loading a backbone: what is read, what is refused and why."""

import json

import pytest
import torch
from transformers import BertConfig, GPT2LMHeadModel

from batching.checkpoint import BackboneError
from batching.engine import Engine
from batching.gpt2 import Backbone
from batching.pretrained import load_backbone
from prefix_store.fingerprint import fingerprint
from tests.batching import oracle
from tests.batching.support import ask, make_model, make_prefix, make_prompt, run, tokens


@pytest.fixture
def checkpoint(tmp_path):
    make_model().half().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_checkpoint_on_disk_answers_as_transformers_does(checkpoint):
    backbone = load_backbone(checkpoint, device="cpu", dtype="float32")
    model = GPT2LMHeadModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    request = ask(make_prompt(9), make_prefix(backbone.shape, 3), max_new_tokens=20)
    (outputs,) = run(Engine(backbone, max_num_seqs=2), [request])
    assert tokens(outputs) == oracle.generate(model, request)
    assert (backbone.name, backbone.dtype_name, backbone.device_name) == ("tiny", "float32", "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_of_its_own_is_no_embedding(tmp_path, dtype):
    tied, model = make_model(), make_model(tie_word_embeddings=False)
    model.load_state_dict(tied.state_dict())
    model.lm_head.weight.data *= -1
    model.save_pretrained(tmp_path / "untied")
    backbone = load_backbone(tmp_path / "untied", device="cpu", dtype=dtype)
    token_ids = torch.arange(backbone.vocab_size)
    assert torch.equal(backbone.embed(token_ids), model.transformer.wte.weight.to(backbone.dtype))
    states = torch.randn(3, backbone.shape.n_embd, dtype=backbone.dtype)
    torch.testing.assert_close(backbone.logits(states), -Backbone.from_model(tied, dtype=dtype).logits(states))


def test_the_fingerprint_is_that_of_the_stored_weights_whatever_the_serving_dtype(checkpoint):
    stored = fingerprint(GPT2LMHeadModel.from_pretrained(checkpoint, dtype="auto").named_parameters())
    assert load_backbone(checkpoint, dtype="float32").fingerprint == stored
    assert load_backbone(checkpoint, dtype="bfloat16").fingerprint == stored
    assert fingerprint(make_model(seed=1).half().named_parameters()) != stored
    in_another_dtype = fingerprint(make_model().named_parameters())
    assert in_another_dtype != stored


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_lower_precision_stays_near_float32(dtype):
    model = make_model()
    prefix = make_prefix(Backbone.from_model(model).shape, 7)
    prompt = make_prompt(30)
    engine = Engine(Backbone.from_model(model, dtype=dtype), max_num_seqs=2)
    request = ask(prompt, prefix, max_new_tokens=1, prompt_logprobs=True)
    (outputs,) = run(engine, [request])
    told = torch.tensor([token.logprob for token in outputs[0].prompt_logprobs])
    logits = oracle.logits(model, prefix.past_key_values, list(prompt))
    exact = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    assert (told - exact).abs().mean() < 0.2


def test_what_is_no_gpt2_is_refused_with_the_reason(tmp_path, checkpoint):
    with pytest.raises(BackboneError, match="no model could be read"):
        load_backbone(tmp_path / "nothing")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(BackboneError, match="'bert'"):
        load_backbone(tmp_path / "bert")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="could not be read"):
        load_backbone(checkpoint)


def test_a_checkpoint_that_lacks_weights_is_refused_and_never_filled_with_random_ones(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(BackboneError, match=r"lacks weights.*h\.2"):
        load_backbone(checkpoint)


def test_a_checkpoint_of_more_layers_than_its_configuration_is_refused_and_never_cut_short(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    with pytest.raises(BackboneError, match=r"weights of h\.1, but its config.json says n_layer 1"):
        load_backbone(checkpoint)


@pytest.mark.parametrize("change", [{"n_embd": "abc"}, {"layer_norm_epsilon": "x"}, {"dtype": "float8"}])
def test_a_configuration_of_other_values_is_refused_as_what_could_not_be_read(checkpoint, change):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BackboneError, match=r"could( not)? be read"):
        load_backbone(checkpoint)


@pytest.mark.parametrize("eos_token_id", [-1, 50, 50256])
def test_an_end_of_text_that_the_vocabulary_does_not_have_is_refused(eos_token_id):
    """As in a checkpoint of a small vocabulary whose configuration says nothing of it."""
    model = make_model(vocab_size=50)
    model.config.eos_token_id = eos_token_id
    with pytest.raises(BackboneError, match=f"eos_token_id is {eos_token_id}, which its vocab_size, 50, does not have"):
        Backbone.from_model(model)


@pytest.mark.parametrize("change", [{"activation_function": "silu"}, {"add_cross_attention": True}])
def test_a_gpt2_that_computes_something_else_is_refused(change):
    with pytest.raises(BackboneError, match=r"activation|cross-attention"):
        Backbone.from_model(make_model(**change))


def test_slots_that_cannot_fit_in_memory_are_refused_at_start():
    with pytest.raises(MemoryError, match="--max-num-seqs"):
        Engine(Backbone.from_model(make_model()), max_num_seqs=10**9)


@pytest.mark.gpu
def test_a_gpu_gives_the_tokens_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_model()
    engine = Engine(Backbone.from_model(model, device="cuda:0"), max_num_seqs=6)
    prefixes = [make_prefix(engine.backbone.shape, length) for length in (2, 9)]
    requests = [ask(make_prompt(5 + i, seed=i), prefixes[i % 2], max_new_tokens=20) for i in range(8)]
    answers = [tokens(outputs) for outputs in run(engine, requests)]
    assert answers == [oracle.generate(model, request) for request in requests]


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_there_is_not_is_refused_by_its_name(name):
    with pytest.raises(BackboneError, match=f"no device '{name}'"):
        Backbone.from_model(make_model(), device=name)


def test_int8_is_refused_where_there_is_none():
    with pytest.raises(BackboneError, match="int8 is for CPUs"):
        Backbone.from_model(make_model(), device="meta", dtype="int8")
