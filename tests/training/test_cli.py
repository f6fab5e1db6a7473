"""The commands, from the files they read to a real server that they upload to and evaluate on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from typer.testing import CliRunner, Result

from clients.client import Client
from tests.training.conftest import Write
from training.backbone import FrozenBackbone, load_backbone
from training.cli import convert, evaluate, print_whole, read_test_sets, report_table, train, train_many
from training.errors import TrainingError
from training.evaluate import Answers, TestSet, score
from training.examples import Example
from training.jobs import read_jobs
from training.prefix_tuning import per_row_cache
from training.settings import make_settings

QUICK = ["--num-virtual-tokens", "3", "--mlp-width", "16", "--max-steps", "6", "--learning-rate", "0.01"]
EXACT = ["--device", "cpu", "--precision", "float32"]


def call(command: Callable[..., Any], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(command: Callable[..., Any], *arguments: object) -> str:
    result = call(command, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def test_train_writes_a_prefix_and_says_where(write_pairs: Write, tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "colours.safetensors"
    files = ["--data", write_pairs("train.jsonl", 8), "--valid", write_pairs("dev.jsonl", 2, seed=1)]
    told = succeed(train, "colours", "--model", checkpoint, *files, "--out", out, *QUICK, *EXACT)
    assert told == f"colours: {out}\n"
    assert metadata_of(out)["format"] == "polyprefix/1"


def test_a_preset_can_be_changed_in_part(write_pairs: Write, tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "colours.safetensors"
    numbers = ["--preset", "webnlg", "--max-steps", "2", "--mlp-width", "8"]
    succeed(train, "colours", "--model", checkpoint, "--data", write_pairs("a.jsonl", 8), "--format", "jsonl",
            "--out", out, *numbers, *EXACT)  # fmt: skip
    made_with = json.loads((tmp_path / "colours.run" / "run.json").read_text())["made_with"]
    assert (made_with["learning_rate"], made_with["batch_size"], made_with["max_steps"]) == (5e-5, 5, 2)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--preset", "xsum"], "no preset 'xsum'"),
        (["--format", "parquet"], "no format 'parquet'"),
        (["--prompt-template", "no place"], "exactly one {inputs}"),
        (["--precision", "float16"], "no precision 'float16'"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--device", "cuda:7"], "no device 'cuda:7'"),
        (["--upload", "localhost:8000"], "localhost:8000"),
        (["--num-virtual-tokens", "128"], "the backbone's context is 128"),
        (["--patience", "3"], "patience is 3, but there is no dev set"),
        (["--eval-every", "10"], "eval_every is 10, but there is no dev set"),
        (["--learning-rate", "1e37", "--mlp-width", "16"], "colours diverged: at step"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    more: list[str], complaint: str, write_pairs: Write, tmp_path: Path, checkpoint: Path
) -> None:
    data = write_pairs("train.jsonl", 8)
    result = call(train, "colours", "--model", checkpoint, "--data", data, "--out", tmp_path / "x", *EXACT, *more)
    assert result.exit_code == 1
    last_line = result.stderr.splitlines()[-1]  # transformers tells before it that it loads weights
    assert last_line.startswith("error: ")
    assert complaint in last_line


@pytest.fixture
def tasks_file(write_pairs: Write, tmp_path: Path) -> Path:
    write_pairs("colours.jsonl", 8)
    write_pairs("places.jsonl", 6, seed=1)
    path = tmp_path / "tasks.toml"
    path.write_text(
        """
        out = "prefixes"
        [defaults]
        preset = "low-data"
        mlp_width = 16
        max_steps = 4
        [tasks.colours]
        data = "colours.jsonl"
        num_virtual_tokens = 3
        [tasks.places]
        data = "places.jsonl"
        valid = "colours.jsonl"
        prompt_template = "{inputs}:"
        """
    )
    return path


def test_a_tasks_file_is_defaults_and_each_tasks_own(tasks_file: Path, tmp_path: Path) -> None:
    colours, places = read_jobs(tasks_file)
    common = {"mlp_width": 16, "max_steps": 4}
    assert colours.settings == make_settings("low-data", {**common, "num_virtual_tokens": 3})
    assert places.settings == make_settings("low-data", {**common, "prompt_template": "{inputs}:"})
    assert (colours.data, colours.valid, colours.format_name) == (tmp_path / "colours.jsonl", None, "jsonl")
    assert places.out == tmp_path / "prefixes" / "places.safetensors"


def test_a_tasks_own_epochs_take_the_place_of_the_steps_of_the_defaults(tasks_file: Path) -> None:
    text = tasks_file.read_text().replace('prompt_template = "{inputs}:"', "epochs = 3")
    tasks_file.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors begin a file
    colours, places = read_jobs(tasks_file)
    assert (colours.settings.max_steps, places.settings.max_steps, places.settings.epochs) == (4, None, 3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected out, \\[defaults\\] and at least one"),
        ("model = 5\n[tasks.a]\ndata = 'x.jsonl'", "found \\['model', 'tasks'\\]"),
        ("[tasks.a]\nvalid = 'x'", "task a: data is missing"),
        ("[tasks.a]\ndata = 'x.jsonl'\nepoch = 5", "task a: no setting epoch"),
        ("[tasks.a]\ndata = 'x.jsonl'\nepochs = 0", "task a: epochs is 0"),
        ("[tasks.'a/b']\ndata = 'x.jsonl'", "'a/b' is no task id"),
        ("[tasks.a]\ndata = 'x.jsonl'\nformat = 'x'", "no format 'x'"),
        ("[tasks.a]\ndata = 'x.jsonl'\npatience = 2", "task a: patience is 2, but there is no dev set"),
        ("[tasks]\na = 'x.jsonl'", "task a: expected a table of keys, found 'x.jsonl'"),
        ("defaults = 5\n[tasks.a]\ndata = 'x.jsonl'", "\\[defaults\\]: expected a table of keys, found 5"),
        ("[tasks.a]\ndata = 5", "task a: data is 5; expected a text"),
        ("[tasks.a]\ndata = 'x.jsonl'\npreset = ['e2e']", "task a: preset is \\['e2e'\\]; expected a text"),
        ("out = 5\n[tasks.a]\ndata = 'x.jsonl'", "out is 5; expected a text"),
        ("[tasks", "cannot be read"),
    ],
)
def test_a_tasks_file_that_is_wrong_is_refused_with_the_task_and_the_key(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=complaint):
        read_jobs(path)


def test_a_data_file_that_is_missing_is_one_line_and_status_1(
    tasks_file: Path, tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "places.jsonl").unlink()
    result = call(train_many, tasks_file, "--model", checkpoint, *EXACT)
    assert result.exit_code == 1
    assert "places.jsonl" in result.stderr.splitlines()[-1]


def test_services_of_one_dialogue_file_are_tasks_of_their_own(tmp_path: Path, checkpoint: Path) -> None:
    act = {"act": "OFFER", "slot": "name", "values": ["Aloft"]}
    records = [{"service": service, "acts": [act], "text": f"It is {service}."} for service in ("Hotels_1", "Banks_1")]
    (tmp_path / "sgd.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, records[0]]))
    (tmp_path / "tasks.toml").write_text(
        """
        [defaults]
        data = "sgd.jsonl"
        max_steps = 1
        mlp_width = 8
        [tasks.hotels]
        format = "sgd:Hotels_1"
        [tasks.banks]
        format = "sgd:Banks_1"
        """
    )
    succeed(train_many, tmp_path / "tasks.toml", "--model", checkpoint, *EXACT)
    runs = [
        json.loads((tmp_path / "prefixes" / f"{task}.run" / "run.json").read_text()) for task in ("hotels", "banks")
    ]
    assert [run["train"]["num_pairs"] for run in runs] == [2, 1]
    assert runs[0]["made_with"]["format"] == "sgd:Hotels_1"


def test_convert_writes_what_it_was_asked_for(write_pairs: Write, tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "colours.safetensors"
    succeed(train, "colours", "--model", checkpoint, "--data", write_pairs("a.jsonl", 4), "--out", out, *QUICK, *EXACT)
    told = succeed(convert, out, tmp_path / "peft", "--to", "peft")
    assert told == f"{tmp_path / 'peft'}: peft, 3 virtual tokens\n"
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert "no form 'onnx'" in call(convert, out, tmp_path / "x", "--to", "onnx").stderr


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """A real server on a free port, its URL."""
    arguments = ["--model", checkpoint, "--store", tmp_path / "store", "--port", "0", "--dtype", "float32"]
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    with (
        (tmp_path / "server.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), (tmp_path / "server.log").read_text()
        yield url
        process.terminate()


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_a_name_that_the_server_refuses_is_told_before_any_training(
    name: str, write_pairs: Write, tmp_path: Path, checkpoint: Path, server: str
) -> None:
    data, out = write_pairs("train.jsonl", 8), tmp_path / "x.safetensors"
    result = call(train, name, "--model", checkpoint, "--data", data, "--out", out, "--upload", server, *EXACT)
    assert (result.exit_code, out.exists()) == (1, False)
    assert "means the bare backbone" in result.stderr.splitlines()[-1]


def test_a_server_of_other_weights_is_told_before_any_training(
    write_pairs: Write, tmp_path: Path, checkpoint: Path, server: str
) -> None:
    other = load_backbone(checkpoint, "cpu", "float32").model
    other.transformer.wte.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path / "other")
    data, out = write_pairs("train.jsonl", 8), tmp_path / "x.safetensors"
    result = call(
        train, "colours", "--model", tmp_path / "other", "--data", data, "--out", out, "--upload", server, *EXACT
    )
    assert (result.exit_code, out.exists()) == (1, False)
    assert f"{server} serves tiny with the fingerprint" in result.stderr.splitlines()[-1]


@torch.no_grad()
def continuation(backbone: FrozenBackbone, path: Path, inputs: str, num_tokens: int) -> str:
    """What the training's own view of the task would say, greedily: its template, its prefix as the cache."""
    with safe_open(path, "pt") as file:
        prefix = file.get_tensor("past_key_values")
    ids = backbone.token_ids(metadata_of(path)["prompt_template"].replace("{inputs}", inputs))
    num_prompt_tokens = len(ids)
    for _ in range(num_tokens):
        owners, mask = torch.tensor([0]), torch.ones(1, prefix.shape[2] + len(ids))
        cache, _ = per_row_cache([prefix], owners, torch.tensor([prefix.shape[2]]), torch.float32)
        output = backbone.model(torch.tensor([ids]), attention_mask=mask, past_key_values=cache)
        ids.append(int(output.logits[0, -1].argmax()))
    return str(backbone.tokenizer.decode(ids[num_prompt_tokens:], skip_special_tokens=True))


def test_many_tasks_are_trained_uploaded_with_their_templates_and_evaluated_where_they_are_served(
    tasks_file: Path, tmp_path: Path, checkpoint: Path, backbone: FrozenBackbone, server: str
) -> None:
    told = succeed(train_many, tasks_file, "--model", checkpoint, "--upload", server, *EXACT)
    assert f"places: version 1 at {server}" in told
    with Client(server) as client:
        assert client.task("places").config.prompt_template == "{inputs}:"
        assert client.task("colours").config.prompt_template == " {inputs} <|endoftext|>"
        (version,) = client.task("places").versions
        assert (version.num_virtual_tokens, version.backbone_checked) == (6, True)
        answer = client.generate("colours", "red cup", max_new_tokens=5).generated_text
    assert answer == continuation(backbone, tmp_path / "prefixes" / "colours.safetensors", "red cup", 5)

    test_set = tmp_path / "test.jsonl"
    test_set.write_text(json.dumps({"input": "red cup", "targets": [answer.strip(), "a cup"]}) + "\n")
    out = tmp_path / "scores" / "e2e.json"
    common = ["--url", server, "--max-new-tokens", "5", "--json", "--out", out]
    told = succeed(
        evaluate, "colours", "places", "--data", test_set, "--data", tmp_path / "places.jsonl", "--limit", "3", *common
    )
    colours, places = json.loads(told)
    assert (colours["version"], colours["rouge_l"]) == (1, 1.0), "the answer that the server gave is a reference"
    assert (places["num_inputs"], places["task_id"]) == (3, "places")
    written = json.loads(out.read_text())
    assert written["tasks"][0]["answers"] == [
        {"inputs": "red cup", "targets": [answer.strip(), "a cup"], "answer": answer.strip()}
    ]
    assert written["parameters"] == {"max_new_tokens": 5}
    assert [(report["num_cut"], report["num_failed"]) for report in (colours, places)] == [(1, 0), (3, 0)]

    long = json.dumps({"input": "red " * 140, "target": "a red one"})
    test_set.write_text(test_set.read_text() + long + "\n")
    result = call(evaluate, "colours", "--url", server, "--data", test_set, "--out", out, "--max-new-tokens", "5")
    assert result.exit_code == 1
    assert "1 inputs of colours failed and count as empty answers; the first, 'red red" in result.stderr
    answered, failed = json.loads(out.read_text())["tasks"][0]["answers"]
    assert (answered["answer"], failed["answer"], "128" in failed["error"]) == (answer.strip(), "", True)


def test_scores_are_told_whole_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    test_set = TestSet("a-task-of-a-long-name", [Example("red cup", ("a red cup",))], "e2e")
    print_whole(report_table([score(test_set, Answers(("a red cup",), version=12))]))
    told = capsys.readouterr().out
    assert "a-task-of-a-long-name" in told
    assert "…" not in told
    assert len({len(line) for line in told.splitlines()}) == 1


def test_tasks_and_test_sets_must_match_in_number(write_pairs: Write) -> None:
    result = call(evaluate, "colours", "places", "--data", write_pairs("a.jsonl", 1))
    assert (result.exit_code, "expected one --data for each task" in result.stderr) == (1, True)


def test_each_test_set_may_have_a_format_of_its_own(write_pairs: Write, tmp_path: Path) -> None:
    lines, table = write_pairs("a.jsonl", 2), tmp_path / "b.txt"
    table.write_text("red\ta red one\n")
    tasks, files = ["a", "b"], [lines, table]
    sets = read_test_sets(tasks, files, ["jsonl", "tsv"], None, None)
    assert [len(test_set.examples) for test_set in sets] == [2, 1]
    assert len(read_test_sets(tasks, [lines, lines], ["jsonl"], "webnlg", 1)[1].examples) == 1
    with pytest.raises(TrainingError, match="3 formats and 2 test sets"):
        read_test_sets(tasks, files, ["jsonl", "tsv", "e2e"], None, None)


def test_no_server_is_one_line_and_status_1(write_pairs: Write) -> None:
    result = call(evaluate, "colours", "--data", write_pairs("a.jsonl", 1), "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "polyprefix serve" in result.stderr
