"""The ways of tuning that are compared: each loss, and that generation continues what the loss trains."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from tests.training.conftest import quick
from training.backbone import FrozenBackbone, load_backbone
from training.encoding import Pair, encode, pad
from training.examples import Example
from training.experiments.decoding import search
from training.experiments.methods import METHODS, Bare, Embeddings, Method, Prefix
from training.experiments.trials import Silence, losses_of_one
from training.task_training import TaskTraining
from training.train import train_together

EXAMPLES = [Example("red cup", ("a red one",)), Example("the blue lamp is small", ("blue",)), Example("x", ("y z",))]


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest, backbone: FrozenBackbone) -> Method:
    return disturbed(METHODS[request.param](backbone, quick()))


def disturbed(method: Method) -> Method:
    """Far enough from its start to matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return method


def test_a_loss_does_not_depend_on_the_other_rows(backbone: FrozenBackbone, method: Method) -> None:
    pairs = encode(EXAMPLES, backbone, "{inputs}\n", 3).pairs
    together = method.losses(pad(pairs, backbone.device))
    alone = sum(method.losses(pad([pair], backbone.device)) for pair in pairs)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_greedy_answers_are_what_the_loss_finds_likeliest(backbone: FrozenBackbone, method: Method) -> None:
    prompts = [list(pair.prompt) for pair in encode(EXAMPLES, backbone, "{inputs}\n", 3).pairs[:2]]
    answers = search(method.start(prompts), end=256, num_beams=1, max_new_tokens=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        for count, token in enumerate(answer):
            found = loss_of(method, prompt + answer[:count], (token,))
            assert all(found <= loss_of(method, prompt + answer[:count], (other,)) for other in range(0, 257, 4))


def test_beam_search_finds_what_the_loss_finds_likelier(backbone: FrozenBackbone, method: Method) -> None:
    prompt = list(encode(EXAMPLES, backbone, "{inputs}\n", 3).pairs[1].prompt)
    greedy, beams = (search(method.start([prompt, prompt[:3]]), 256, n, max_new_tokens=3)[0] for n in (1, 64))
    assert len(greedy) == len(beams) == 3
    assert loss_of(method, prompt, tuple(beams)) <= loss_of(method, prompt, tuple(greedy)) + 1e-4


def test_what_was_tuned_can_be_loaded_again(backbone: FrozenBackbone) -> None:
    for name, make in METHODS.items():
        tuned, other = disturbed(make(backbone, quick())), make(backbone, quick(seed=5))
        other.load(tuned().detach())
        prompts = [[1, 2, 3], [4, 5]]
        expected, found = (search(each.start(prompts), 256, 1, 5) for each in (tuned, other))
        assert found == expected, name


def test_worked_examples_leave_room_for_the_answer(backbone: FrozenBackbone) -> None:
    end = backbone.tokenizer.eos_token_id
    worked = torch.tensor([1, 2, end, 3, end])
    room = backbone.shape.n_positions - 10
    bare = Bare(backbone, worked, max_new_tokens=10)
    prompts = [[7] * num for num in (room - 5, room - 4, room - 1)]
    assert [list(prompt)[:5] for prompt in bare.start(prompts).prompts] == [
        [1, 2, end, 3, end],
        [3, end, 7, 7, 7],
        [7, 7, 7, 7, 7],
    ]


def test_embeddings_start_as_the_words_whose_keys_and_values_a_prefix_starts_as(backbone: FrozenBackbone) -> None:
    settings = quick(init_text="red cup", mlp_width=0, num_virtual_tokens=9)  # more than the words have: they repeat
    embeddings, prefix = Embeddings(backbone, settings), Prefix(backbone, settings)
    torch.testing.assert_close(embeddings.keys_and_values(), prefix(), rtol=1e-4, atol=1e-4)


def test_answers_are_made_on_the_models_device_whatever_the_default_one(
    backbone: FrozenBackbone, method: Method
) -> None:
    prompts = [[1, 2, 3], [4, 5]]
    expected = search(method.start(prompts), end=256, num_beams=1, max_new_tokens=3)
    with torch.device("meta"):  # it holds no numbers, so what was made on it could not go on
        found = search(method.start(prompts), end=256, num_beams=1, max_new_tokens=3)
    assert found == expected


@pytest.mark.parametrize("name", ["full", "top-two", "lora"])
def test_weights_that_are_loaded_stay_on_the_models_device(backbone: FrozenBackbone, name: str) -> None:
    model = copy.deepcopy(backbone.model).to("meta")
    model.tie_weights()
    method = METHODS[name](dataclasses.replace(backbone, model=model), quick())
    method.load(METHODS[name](backbone, quick())().detach())
    assert {parameter.device.type for parameter in method.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", list(METHODS))
def test_a_gpu_gives_the_answers_of_the_cpu(checkpoint: Path, backbone: FrozenBackbone, name: str) -> None:
    on_gpu = load_backbone(checkpoint, device="cuda", precision="float32")
    there, here = (METHODS[name](each, quick()) for each in (on_gpu, backbone))
    train_together(on_gpu, [training_of(there, on_gpu)], Silence(), losses_of=losses_of_one)
    tuned = there().detach().cpu()
    there.load(tuned)
    here.load(tuned)
    prompts = [[1, 2, 3], [4, 5]]
    found, expected = (
        search(method.start(prompts), end=256, num_beams=2, max_new_tokens=3) for method in (there, here)
    )
    assert found == expected


def training_of(method: Method, backbone: FrozenBackbone) -> TaskTraining:
    pairs = encode(EXAMPLES, backbone, "{inputs}\n", 3)
    return TaskTraining("task", method, quick(max_steps=2), pairs, pairs)


@torch.no_grad()
def loss_of(method: Method, prompt: list[int], answer: tuple[int, ...]) -> float:
    return method.losses(pad([Pair(tuple(prompt), answer)], torch.device("cpu"))).item()
