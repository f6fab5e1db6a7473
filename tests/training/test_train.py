"""Training: one task, many tasks, and what is never changed."""

import math
from collections.abc import Sequence

import pytest
import torch

from prefix_store.fingerprint import fingerprint
from tests.training.conftest import make_model, quick
from training.backbone import FrozenBackbone
from training.encoding import Encoded, encode
from training.examples import Example
from training.prefix_tuning import TunedPrefix
from training.settings import Settings
from training.task_training import TaskTraining
from training.train import DEFAULT_ROWS_PER_PASS, accumulate, run_step, train_together

COLOURS = [Example(f"{word} cup", (f"a {word} one", f"{word}")) for word in ("red", "green", "blue", "white", "black")]
PLACES = [Example(f"near the {word}", (f"the {word} is here",)) for word in ("plate", "lamp", "book", "door")]


class Diary:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, int]] = []

    def stepped(self, training: TaskTraining) -> None:
        self.entries.append(("stepped", training.task_id, training.progress.step))

    def evaluated(self, training: TaskTraining) -> None:
        self.entries.append(("evaluated", training.task_id, training.progress.step))

    def finished(self, training: TaskTraining) -> None:
        self.entries.append(("finished", training.task_id, training.progress.step))

    def diverged(self, training: TaskTraining) -> None:
        self.entries.append(("diverged", training.task_id, training.progress.step))

    def steps(self, what: str, task_id: str) -> list[int]:
        return [step for kind, task, step in self.entries if (kind, task) == (what, task_id)]


def prepare(
    backbone: FrozenBackbone,
    settings: Settings,
    examples: Sequence[Example] = COLOURS,
    task_id: str = "colours",
    dev: bool = True,
) -> TaskTraining:
    def read(chosen: Sequence[Example]) -> Encoded:
        return encode(chosen, backbone, settings.prompt_template, settings.num_virtual_tokens)

    return TaskTraining(
        task_id, TunedPrefix(backbone, settings), settings, read(examples), read(examples[-2:]) if dev else None
    )


def gradients(training: TaskTraining) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in training.tuned.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def test_training_lowers_the_loss_and_changes_no_bit_of_the_backbone(backbone: FrozenBackbone) -> None:
    before = fingerprint([*backbone.model.named_parameters(), *backbone.model.named_buffers()])
    training = prepare(backbone, quick(max_steps=40, learning_rate=0.03))
    train_together(backbone, [training], Diary())
    losses = [loss for _, loss in training.progress.train_losses]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert fingerprint([*backbone.model.named_parameters(), *backbone.model.named_buffers()]) == before
    assert fingerprint(backbone.model.named_parameters()) == fingerprint(make_model().named_parameters())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_a_tasks_gradients_among_others_are_those_it_has_alone(backbone: FrozenBackbone) -> None:
    def both() -> list[TaskTraining]:
        short, long = quick(num_virtual_tokens=2, batch_size=4), quick(num_virtual_tokens=7, batch_size=3, seed=1)
        return [prepare(backbone, short), prepare(backbone, long, PLACES, "places")]

    together, alone = both(), both()
    rows = [(owner, pair) for owner, training in enumerate(together) for pair in training.next_pairs()]
    accumulate(backbone, together, rows, torch.tensor([0.1, 0.2]))
    for training, weight in zip(alone, (0.1, 0.2), strict=True):
        accumulate(backbone, [training], [(0, pair) for pair in training.next_pairs()], torch.tensor([weight]))
    for mixed, single in zip(together, alone, strict=True):
        for found, expected in zip(gradients(mixed), gradients(single), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_tasks_that_train_together_end_as_each_would_alone(backbone: FrozenBackbone) -> None:
    def both() -> list[TaskTraining]:
        colours = quick(max_steps=12, batch_size=4, num_virtual_tokens=2)
        places = quick(epochs=2, batch_size=3, num_virtual_tokens=5, warmup_steps=2, seed=1)
        return [prepare(backbone, colours), prepare(backbone, places, PLACES, "places")]

    together, alone, diary = both(), both(), Diary()
    train_together(backbone, together, diary)
    for training in alone:
        train_together(backbone, [training], Diary())
    assert (diary.steps("finished", "colours"), diary.steps("finished", "places")) == ([12], [4])
    for mixed, single in zip(together, alone, strict=True):
        torch.testing.assert_close(mixed.progress.train_losses, single.progress.train_losses, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mixed.result, single.result, rtol=1e-2, atol=1e-3)


def test_a_step_in_several_passes_has_the_gradients_of_one_pass(backbone: FrozenBackbone) -> None:
    whole, parts = (prepare(backbone, quick(batch_size=8, max_grad_norm=1e9)) for _ in range(2))
    run_step(backbone, [whole], rows_per_pass=8)
    run_step(backbone, [parts], rows_per_pass=3)
    torch.testing.assert_close(whole.progress.train_losses, parts.progress.train_losses)
    torch.testing.assert_close(whole.current(), parts.current(), rtol=1e-4, atol=1e-5)


def test_the_prefix_with_the_best_dev_loss_is_kept(backbone: FrozenBackbone) -> None:
    training = prepare(backbone, quick(max_steps=1))
    training.take_dev_loss(2.0)
    best = training.current()
    run_step(backbone, [training], rows_per_pass=8)
    training.take_dev_loss(3.0)
    assert torch.equal(training.result, best)
    assert not torch.equal(training.current(), best)


def test_without_a_dev_set_the_last_prefix_is_kept(backbone: FrozenBackbone) -> None:
    training = prepare(backbone, quick(max_steps=2), dev=False)
    train_together(backbone, [training], Diary())
    assert torch.equal(training.result, training.current())
    assert training.progress.dev_losses == []


def test_a_run_stops_early_when_the_dev_loss_no_longer_falls(backbone: FrozenBackbone) -> None:
    # answers that contradict the dev set's: learning the one unlearns the other
    settings = quick(max_steps=200, eval_every=2, patience=2, learning_rate=0.05)
    training = TaskTraining(
        "task",
        TunedPrefix(backbone, settings),
        settings,
        encode([Example("x", ("aaaa",))], backbone, "{inputs}", 3),
        encode([Example("x", ("zzzz",))], backbone, "{inputs}", 3),
    )
    train_together(backbone, [training], Diary())
    assert training.stopped_early
    assert training.progress.step < 200
    assert training.progress.step == training.progress.best_step + 2 * 2


def test_a_task_that_diverges_is_taken_out_at_once_and_the_others_go_on(backbone: FrozenBackbone) -> None:
    def places() -> TaskTraining:
        return prepare(backbone, quick(max_steps=6), PLACES, "places")

    together, alone, diary = places(), places(), Diary()
    train_together(backbone, [prepare(backbone, quick(max_steps=6, learning_rate=1e37)), together], diary)
    train_together(backbone, [alone], Diary())
    (step,) = diary.steps("diverged", "colours")
    assert 1 < step < 6
    assert diary.steps("stepped", "colours") == list(range(1, step)), "nothing is kept of the step without a loss"
    assert diary.steps("finished", "colours") == []
    assert diary.steps("finished", "places") == [6]
    torch.testing.assert_close(together.result, alone.result, rtol=1e-2, atol=1e-3)


def test_a_prefix_that_the_last_step_spoiled_is_not_finished(backbone: FrozenBackbone) -> None:
    diary = Diary()
    train_together(
        backbone, [prepare(backbone, quick(max_steps=1, mlp_width=64, learning_rate=3e37), dev=False)], diary
    )
    assert (diary.steps("diverged", "colours"), diary.steps("finished", "colours")) == ([1], [])


def test_a_prefix_without_a_finite_dev_loss_is_not_finished(
    backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.train.dev_loss", lambda *_: math.nan)
    diary = Diary()
    train_together(backbone, [prepare(backbone, quick(max_steps=1))], diary)
    assert (diary.steps("diverged", "colours"), diary.steps("finished", "colours")) == ([1], [])


def test_evaluation_comes_every_so_many_steps_and_at_the_end(backbone: FrozenBackbone) -> None:
    diary = Diary()
    train_together(backbone, [prepare(backbone, quick(max_steps=7, eval_every=3))], diary)
    assert diary.steps("evaluated", "colours") == [3, 6, 7]
    by_epoch = Diary()
    train_together(backbone, [prepare(backbone, quick(epochs=2, batch_size=4))], by_epoch)
    assert by_epoch.steps("evaluated", "colours") == [3, 6], "ten pairs, four at a time, are three steps"


def test_an_epoch_shows_every_pair_once(backbone: FrozenBackbone) -> None:
    training = prepare(backbone, quick(batch_size=4, epochs=1), dev=False)
    seen = []
    while not training.is_done:
        seen += list(training.next_pairs())
        training.update(0.0)
    assert sorted(seen, key=repr) == sorted(training.train.pairs, key=repr)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "muon"}, {"optimizer": "muon", "mlp_width": 0}])
def test_a_state_that_is_loaded_goes_on_exactly_where_it_was(
    backbone: FrozenBackbone, optimizer: dict[str, object]
) -> None:
    settings = quick(max_steps=10, warmup_steps=2, eval_every=4, **optimizer)
    uninterrupted, first, second = (prepare(backbone, settings) for _ in range(3))
    train_together(backbone, [uninterrupted], Diary())
    for _ in range(5):
        run_step(backbone, [first], DEFAULT_ROWS_PER_PASS)
        if first.is_to_be_evaluated:
            first.take_dev_loss(1e9)
    second.load_state(first.state())
    train_together(backbone, [second], Diary())
    assert second.progress.train_losses == uninterrupted.progress.train_losses
    assert torch.equal(second.current(), uninterrupted.current())
