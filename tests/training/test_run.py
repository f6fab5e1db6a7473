"""Runs on disk: what they leave, and that a killed one goes on to the same end."""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from tensorboardX.proto.event_pb2 import Event, SessionLog

from prefix_store.formats import parse
from prefix_store.prefix import Prefix
from tests.training.conftest import Write, quick
from training.backbone import FrozenBackbone
from training.checkpoint import load_checkpoint, save_checkpoint
from training.curves import EventLog
from training.errors import BadExamples, BadSettings, Diverged, OtherRun
from training.progress_bar import ProgressBar
from training.run import Job, held, made_with, run_jobs
from training.settings import Settings

COMMAND = "import sys, torch, typer; torch.set_num_threads(1); from training.cli import train; typer.run(train)"


def make_job(write_pairs: Write, out: Path, settings: Settings, task_id: str = "colours") -> Job:
    train, dev = write_pairs(f"{task_id}.jsonl", 12, seed=1), write_pairs(f"{task_id}.dev.jsonl", 4, seed=2)
    return Job(task_id, train, "jsonl", dev, out, settings)


def quiet() -> ProgressBar:
    return ProgressBar(Console(quiet=True))


def run(job: Job, backbone: FrozenBackbone, resume: bool = False) -> None:
    run_jobs([job], backbone, quiet(), resume)


def test_a_finished_run_leaves_a_prefix_that_the_store_reads(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "out" / "colours.safetensors", quick(max_steps=6, eval_every=3))
    run(job, backbone)
    prefix = parse(job.out.read_bytes(), backbone.shape, backbone.fingerprint)
    assert isinstance(prefix, Prefix)
    assert (prefix.kind, prefix.num_virtual_tokens) == ("prefix", 3)
    assert prefix.metadata["prompt_template"] == " {inputs} <|endoftext|>"
    assert prefix.metadata["task_id"] == "colours"
    left = sorted(path.name for path in job.folder.iterdir())
    assert left == ["loss.png", "losses.csv", "run.json", "tensorboard"], "and the checkpoint is gone"


def test_the_record_says_what_was_done(write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=6, eval_every=3))
    run(job, backbone)
    record = json.loads((job.folder / "run.json").read_text())
    assert record["made_with"]["backbone"] == backbone.fingerprint
    assert record["made_with"]["learning_rate"] == 3e-3
    assert (record["num_steps"], record["stopped_early"], len(record["dev_losses"])) == (6, False, 2)
    assert record["best_dev_loss"] == min(loss for _, loss in record["dev_losses"])
    assert record["prefix"]["num_values"] == 2 * 2 * 3 * 32
    assert record["tokens_per_second"] > 0
    lines = (job.folder / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,train,dev"
    assert len(lines) == 7
    assert (job.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_outs_of_different_names_have_different_folders(write_pairs: Write, tmp_path: Path) -> None:
    names = ("e2e.safetensors", "e2e.v1", "e2e.v2", "e2e.v3.safetensors")
    folders = [make_job(write_pairs, tmp_path / name, quick()).folder.name for name in names]
    assert folders == ["e2e.run", "e2e.v1.run", "e2e.v2.run", "e2e.v3.run"]


def test_tasks_that_would_share_a_folder_are_refused_before_it_is_touched(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    jobs = [make_job(write_pairs, tmp_path / "same.safetensors", quick(max_steps=1), name) for name in ("a", "b")]
    run(jobs[0], backbone)
    with pytest.raises(BadSettings, match=r"several tasks would write to .*same\.run"):
        run_jobs(jobs, backbone, quiet())
    assert (jobs[0].folder / "run.json").exists()


def test_a_folder_that_another_training_writes_to_is_left_alone(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    run(job, backbone)
    left = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    again = make_job(write_pairs, job.out, quick(max_steps=2))
    with held(job.folder), pytest.raises(BadSettings, match=r"another training writes to .*colours\.run; give"):
        run(again, backbone)
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == left
    run(again, backbone)
    assert json.loads((job.folder / "run.json").read_text())["num_steps"] == 2


def test_a_folder_in_the_prefixs_place_is_told_before_any_training(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    (tmp_path / "prefixes").mkdir()
    with pytest.raises(BadSettings, match="prefixes is a folder; expected a file for the prefix of colours"):
        run(make_job(write_pairs, tmp_path / "prefixes", quick(max_steps=1)), backbone)


def test_a_prefix_never_takes_the_place_of_examples(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    assert job.valid is not None
    for examples in (job.data, job.valid):
        before = examples.read_bytes()
        with pytest.raises(BadSettings, match="holds examples; the prefix of colours would take their place"):
            run(replace(job, out=tmp_path / "." / examples.name), backbone)
        assert examples.read_bytes() == before


def test_a_run_that_ends_while_another_waits_to_resume_it_is_left_as_it_is(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=2))
    run(job, backbone)
    record = (job.folder / "run.json").read_bytes()
    with held(job.folder), pytest.raises(BadSettings, match="another training writes to"):
        run(job, backbone, resume=True)
    run(job, backbone, resume=True)
    assert (job.folder / "run.json").read_bytes() == record


def test_a_path_that_is_no_unicode_text_is_written_down_all_the_same(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    renamed = job.data.rename(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es.jsonl"))
    run(replace(job, data=renamed), backbone)
    assert json.loads((job.folder / "run.json").read_text())["train"]["path"] == str(renamed)


@pytest.mark.parametrize("state", [{"a": 1}, {"made_with": None}])
def test_a_foreign_checkpoint_is_told(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone, state: dict[str, Any]
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    save_checkpoint(job.checkpoint, {**state, "made_with": made_with(job, backbone)} if "made_with" in state else state)
    with pytest.raises(OtherRun, match="start afresh, without --resume"):
        run(job, backbone, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_that_is_missing_is_told_before_an_earlier_run_is_removed(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone, resume: bool
) -> None:
    jobs = [make_job(write_pairs, tmp_path / f"{name}.safetensors", quick(max_steps=1), name) for name in ("a", "b")]
    run_jobs(jobs, backbone, quiet())
    jobs[1].data.unlink()
    with pytest.raises(BadExamples, match=r"b\.jsonl.* cannot be read"):
        run_jobs(jobs, backbone, quiet(), resume)
    assert all((job.folder / "run.json").exists() for job in jobs)


def test_a_diverged_task_keeps_its_earlier_prefix_and_the_others_end(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    earlier = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    run(earlier, backbone)
    written = earlier.out.read_bytes()
    wild = make_job(write_pairs, earlier.out, quick(max_steps=9, learning_rate=1e37))
    tame = make_job(write_pairs, tmp_path / "places.safetensors", quick(max_steps=9), "places")
    with pytest.raises(
        Diverged, match=r"^colours diverged: at step \d the loss is (nan|inf).*lower learning rate than 1e\+37$"
    ):
        run_jobs([wild, tame], backbone, quiet())
    assert earlier.out.read_bytes() == written
    assert not wild.checkpoint.exists(), "it would lead a lower rate's --resume to the same end"
    assert tensor_of(tame.out).isfinite().all()
    assert (tame.folder / "run.json").exists()


def test_commongens_targets_are_part_of_what_a_run_was_made_with(tmp_path: Path, backbone: FrozenBackbone) -> None:
    data, targets = tmp_path / "a.src_alpha.txt", tmp_path / "a.tgt.txt"
    data.write_text("cup red\n")
    targets.write_text("a red cup\n")
    job = Job("words", data, "commongen", None, tmp_path / "words.safetensors", quick(max_steps=1))
    run(job, backbone)
    targets.write_text("the red cup\n")
    with pytest.raises(OtherRun, match="another data"):
        run(job, backbone, resume=True)


def test_a_run_is_made_with_the_sha256_of_its_data(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick())
    assert made_with(job, backbone)["data"] == hashlib.sha256(job.data.read_bytes()).hexdigest()


def test_a_run_that_begins_again_has_tensorboard_forget_what_came_after(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=2))
    run(job, backbone, resume=True)
    (path,) = (job.folder / "tensorboard").iterdir()
    starts = [event.step for event in read_events(path) if event.session_log.status == SessionLog.START]
    assert starts == [1], "a run that was killed before its first checkpoint has written losses of these steps"


def test_tensorboard_finds_every_loss(write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=6, eval_every=3))
    run(job, backbone)
    (path,) = (job.folder / "tensorboard").iterdir()
    found = [(value.tag, event.step) for event in read_events(path) for value in event.summary.value]
    assert [step for tag, step in found if tag == "loss/train"] == [1, 2, 3, 4, 5, 6]
    assert [step for tag, step in found if tag == "loss/dev"] == [3, 6]


def read_events(path: Path) -> list[Event]:
    """TFRecords: eight bytes of length, four of checksum, the event, four of checksum."""
    body, events, start = path.read_bytes(), [], 0
    while start < len(body):
        length = int.from_bytes(body[start : start + 8], "little")
        events.append(Event.FromString(body[start + 12 : start + 12 + length]))
        start += 16 + length
    return events


def command(checkpoint: Path, train: Path, dev: Path, out: Path, *more: str) -> list[str]:
    options = ["--model", checkpoint, "--data", train, "--valid", dev, "--out", out, "--num-virtual-tokens", "3"]
    numbers = ["--max-steps", "400", "--eval-every", "40", "--mlp-width", "16", "--learning-rate", "0.003"]
    exact = ["--precision", "float32", "--device", "cpu"]
    return [sys.executable, "-c", COMMAND, "colours", *map(str, options), *numbers, *exact, *more]


def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(
    write_pairs: Write, tmp_path: Path, checkpoint: Path, backbone: FrozenBackbone
) -> None:
    train, dev = write_pairs("train.jsonl", 12, seed=1), write_pairs("dev.jsonl", 4, seed=2)
    whole = Job("colours", train, "jsonl", dev, tmp_path / "whole.safetensors", quick(max_steps=400, eval_every=40))
    run(whole, backbone)

    killed = tmp_path / "killed.safetensors"
    with subprocess.Popen(command(checkpoint, train, dev, killed), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("step 120 of 400" in line for line in lines), "it tells every evaluation"
        process.kill()
    assert not killed.exists(), "killed in the middle"
    assert (tmp_path / "killed.run" / "checkpoint.pt").exists()

    resumed = subprocess.run(
        command(checkpoint, train, dev, killed, "--resume"), capture_output=True, text=True, check=True
    )
    assert "step 40 of" not in resumed.stderr, "it does not begin again"
    ended, expected = (json.loads((tmp_path / f"{name}.run" / "run.json").read_text()) for name in ("killed", "whole"))
    assert ended["final_train_loss"] == pytest.approx(expected["final_train_loss"], rel=1e-5)
    assert ended["dev_losses"] == [[step, pytest.approx(loss, rel=1e-5)] for step, loss in expected["dev_losses"]]
    torch.testing.assert_close(tensor_of(killed), tensor_of(whole.out), rtol=1e-4, atol=1e-5)


def tensor_of(path: Path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor("past_key_values")
    return tensor


def test_resuming_with_other_settings_is_refused(write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=4))
    run(job, backbone)
    other = make_job(write_pairs, job.out, quick(max_steps=4, learning_rate=0.1))
    with pytest.raises(OtherRun, match=r"another learning_rate \(learning_rate 0.003, now 0.1\)"):
        run(other, backbone, resume=True)


def test_what_a_run_did_not_write_is_not_removed(write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    run(job, backbone)
    job.checkpoint.write_bytes(b"of a run that was killed")
    notes = job.folder / "notes.txt"
    notes.write_text("mine")
    run(job, backbone)
    assert notes.read_text() == "mine"
    assert not job.checkpoint.exists()


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04 and no more"])
def test_resuming_from_a_damaged_file_says_so(
    body: bytes, write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1))
    run(job, backbone)
    (job.folder / "run.json").write_bytes(body)
    with pytest.raises(OtherRun, match=r"run\.json is damaged .*; start afresh, without --resume"):
        run(job, backbone, resume=True)
    job.checkpoint.write_bytes(body)
    with pytest.raises(OtherRun, match=r"checkpoint\.pt is damaged .*; start afresh, without --resume"):
        run(job, backbone, resume=True)


def test_resuming_a_finished_run_leaves_it_as_it_is(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=4))
    run(job, backbone)
    written = job.out.stat().st_mtime_ns
    run(job, backbone, resume=True)
    assert job.out.stat().st_mtime_ns == written
    run(job, backbone)
    assert job.out.stat().st_mtime_ns > written, "without --resume it is trained afresh"


def test_resuming_before_the_first_checkpoint_starts_at_the_beginning(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    job = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=4))
    run(job, backbone, resume=True)
    assert job.out.exists()


def test_a_checkpoint_is_whole_or_absent_and_tells_what_it_was_made_with(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path, {"seed": 1}) is None
    save_checkpoint(path, {"made_with": {"seed": 1}, "step": torch.tensor(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = load_checkpoint(path, {"seed": 1})
    assert state is not None
    assert state["step"] == 3
    with pytest.raises(OtherRun, match="another seed"):
        load_checkpoint(path, {"seed": 2})


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """A disk with so much room for each file: what goes beyond fails, as on a full one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"made_with": {}, "step": 3})
    with files_of_at_most(10_000), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, {"made_with": {}, "step": 4, "prefix": torch.zeros(10_000)})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(path, {}) == {"made_with": {}, "step": 3}


def test_a_disk_that_is_full_for_the_curves_is_told_and_blocks_nobody(tmp_path: Path) -> None:
    events = EventLog(tmp_path, 0)

    def go_on() -> None:
        for step in range(1_000):
            events.add("loss/train", 1.0, step)

    with files_of_at_most(2_000), pytest.raises(OSError, match="File too large"):
        go_on()
    events.close()


def test_pairs_that_are_left_out_are_told(write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone) -> None:
    job, told = make_job(write_pairs, tmp_path / "colours.safetensors", quick(max_steps=1)), io.StringIO()
    with job.data.open("a") as file:
        file.write(json.dumps({"input": "red " * 200, "target": "cup"}) + "\n")
    run_jobs([job], backbone, ProgressBar(Console(file=told)))
    assert "colours: 1 pairs do not fit into the context and are left out\n" in told.getvalue()


def test_what_is_wrong_with_one_of_many_jobs_is_told_with_its_name(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    jobs = [make_job(write_pairs, tmp_path / f"{name}.safetensors", quick(), name) for name in ("a", "b")]
    (jobs[1].data).write_text(json.dumps({"input": "red " * 200, "target": "cup"}) + "\n")
    with pytest.raises(BadExamples, match="task b: none of"):
        run_jobs(jobs, backbone, quiet())


def test_many_jobs_leave_what_each_would_have_left_alone(
    write_pairs: Write, tmp_path: Path, backbone: FrozenBackbone
) -> None:
    def jobs(folder: str) -> list[Job]:
        settings = [quick(max_steps=5), quick(max_steps=9, num_virtual_tokens=6, eval_every=4)]
        names = ("colours", "places")
        return [
            make_job(write_pairs, tmp_path / folder / f"{name}.safetensors", chosen, name)
            for name, chosen in zip(names, settings, strict=True)
        ]

    run_jobs(jobs("together"), backbone, quiet())
    for job in jobs("alone"):
        run(job, backbone)
    for mixed, single in zip(jobs("together"), jobs("alone"), strict=True):
        torch.testing.assert_close(tensor_of(mixed.out), tensor_of(single.out), rtol=1e-2, atol=1e-3)
