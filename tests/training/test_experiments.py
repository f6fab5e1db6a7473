"""The experiments: that each runs to its report on a tiny backbone, and goes on where it was left."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from training.errors import OtherRun
from training.experiments.command import EXPERIMENTS
from training.experiments.lab import Lab
from training.experiments.problems import PROBLEMS
from training.experiments.scales import SCALES
from training.experiments.trials import Trial
from training.experiments.worker import Place

TINY = replace(
    SCALES["small"],
    num_virtual_tokens=2,
    mlp_width=8,
    num_pairs=4,
    batch_size=dict.fromkeys(PROBLEMS, 2),
    epochs=dict.fromkeys(SCALES["small"].epochs, 1),
    ablation_steps=1,
    evaluations=1,
    num_dev_inputs=1,
    learning_rates=dict.fromkeys(SCALES["small"].learning_rates, (1e-3, 3e-3)),
    most_rates=2,
    num_seeds=1,
    lengths=(1, 2),
    low_data_sizes=(2, 4),
    low_data_steps=1,
    num_subsets=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of made-up records in the files of the three problems."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("e2e", "webnlg2017", "commongen"):
        (folder / name).mkdir()
    for name in ("trainset", "devset", "testset_w_refs"):
        rows = [f'"a[{word}], b[x]",{word} x' for word in ("red", "cup", "blue", "lamp")]
        (folder / "e2e" / f"{name}.csv").write_text("\n".join(["mr,ref", *rows]) + "\n")
    records = [
        {"triples": [[word, "is", "small"]], "refs": [{"text": f"{word} is small"}]} for word in ("cup", "lamp", "book")
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    for name in ("train", "dev", "test"):
        (folder / "webnlg2017" / f"{name}.jsonl").write_text("".join(lines))
    (folder / "webnlg2017" / "test_unseen.jsonl").write_text(lines[0])
    for split in ("train", "dev", "test"):
        for side, text in (("src_alpha", "cup red"), ("tgt", "a red cup")):
            (folder / "commongen" / f"commongen.{split}.{side}.txt").write_text(f"{text}\n{text} lamp\n")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def lab(checkpoint: Path, data: Path, out: Path) -> Iterator[Lab]:
    with Lab(Place(str(checkpoint), data, TINY, out, "cpu"), "any", 1, print) as lab:
        yield lab


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_leaves_a_table_a_plot_and_its_figures(lab: Lab, out: Path, name: str) -> None:
    report = EXPERIMENTS[name](lab)
    report.write(out, name, {"command": "polyprefix experiment"})
    content = json.loads((out / f"{name}.json").read_text())
    assert content["made_with"] == {"command": "polyprefix experiment"}
    assert len(content["table"]) == len(report.rows) > 0
    assert (out / f"{name}.md").read_text().count("\n") == len(report.rows) + 2
    assert (out / f"{name}.png").stat().st_size > 1000


def test_what_is_known_is_not_run_again_and_half_a_line_is(lab: Lab, checkpoint: Path, data: Path, out: Path) -> None:
    trial = Trial("e2e", "prefix", learning_rate=1e-3)
    (first,) = lab.run([trial])
    results = out / "trials.jsonl"
    before = results.read_text()
    assert lab.run([trial, trial]) == [first, first]
    assert results.read_text() == before
    results.write_text(before[:-20])  # killed while writing
    lost = Trial(**json.loads(before.splitlines()[-1])["trial"])
    with Lab(Place(str(checkpoint), data, TINY, out, "cpu"), "any", 1, print) as again:
        (outcome,) = again.run([lost])
    assert outcome.trial == lost
    lines = results.read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [json.loads(line)["trial"] for line in before.splitlines()]


def test_a_folder_belongs_to_one_content_of_the_data_unless_it_does_not_tell(
    lab: Lab, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    copied, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, copied)
    place = Place(str(checkpoint), copied, TINY, out, "cpu")
    with Lab(place, "any", 1, print):
        told = json.loads((out / "lab.json").read_text())
    (copied / "commongen" / "README.md").write_text("no file that is read")
    with Lab(place, "any", 1, print):
        assert json.loads((out / "lab.json").read_text()) == told
    (copied / "commongen" / "commongen.dev.tgt.txt").write_text("one\ntwo\n")
    with pytest.raises(OtherRun, match="another sha256 of commongen"):
        Lab(place, "any", 1, print)

    older = {name: fact for name, fact in told.items() if name != "precision" and not name.startswith("sha256")}
    (out / "lab.json").write_text(json.dumps(older))
    with Lab(place, "any", 1, print):
        assert set(json.loads((out / "lab.json").read_text())) == set(told)


def test_a_trial_that_diverges_has_a_score_too(lab: Lab) -> None:
    (outcome,) = lab.run([Trial("e2e", "prefix", mlp_width=64, learning_rate=3e37)])
    assert outcome.dev_loss == math.inf


def test_a_folder_belongs_to_one_backbone_and_scale(lab: Lab, checkpoint: Path, data: Path, out: Path) -> None:
    place = Place(str(checkpoint), data, TINY, out, "cpu")
    with pytest.raises(OtherRun, match="another backbone"):
        Lab(place, "other", 1, print)
    with pytest.raises(OtherRun, match="another batch_size"):
        Lab(replace(place, scale=replace(TINY, batch_size=dict.fromkeys(PROBLEMS, 3))), "any", 1, print)


def test_what_is_kept_of_the_trials_here_quotes_no_data() -> None:
    """WebNLG's texts may not be passed on."""
    kept = list((Path(__file__).parents[2] / "docs" / "experiments").rglob("trials.jsonl"))
    assert kept
    for path in kept:
        for line in path.read_text().splitlines():
            result = json.loads(line)
            texts = [value for name, value in result.items() if name not in ("trial", "split", "bleu_signature")]
            assert not any(isinstance(value, str) or "inputs" in str(value) for value in texts)


ORPHANED = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from training.experiments import worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), worker.watch_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_the_workers_of_a_lab_that_is_killed_end_too(tmp_path: Path) -> None:
    """They would compute on beside those of the next one, which go on where this one was left."""
    script = tmp_path / "lab.py"
    script.write_text(ORPHANED)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as lab:
        assert lab.stdout is not None
        worker = int(lab.stdout.readline())
        lab.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "it computes on"
        time.sleep(0.05)
