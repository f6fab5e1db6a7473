"""The server as it is run: a process with the real engine on a tiny random GPT-2, real signals, a real port."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import typer
from safetensors.torch import save
from typer.testing import CliRunner

from prefix_store.formats import dump
from server.admin_cli import admin
from server.cli import bind, serve
from tests.server.test_generate import events_of

COMMAND = [sys.executable, "-m", "server.cli"]


@dataclass
class Process:
    popen: subprocess.Popen[str]
    http: httpx.Client

    def end(self, signal_number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(signal_number)
        return self.popen.wait(40)

    def generate(self, inputs: str, **parameters: Any) -> dict[str, Any]:
        answer = self.http.post("/generate", json={"inputs": inputs, "parameters": parameters})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


def environment(**settings: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{f"POLYPREFIX_{name}": value for name, value in settings.items()}}


Launch = Callable[..., Process]


@contextmanager
def launcher(model: Path, directory: Path) -> Iterator[Launch]:
    """Starts servers on free ports, with these `POLYPREFIX_…` settings, on one store; they are killed in the end."""
    with ExitStack() as stack:

        def launch(log_file: Path | None = None, **settings: str) -> Process:
            arguments = [
                "--model",
                str(model),
                "--store",
                str(directory / "store"),
                "--port",
                "0",
                "--dtype",
                "float32",
            ]
            log = stack.enter_context((log_file or directory / "log").open("a"))
            popen = subprocess.Popen(
                [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, env=environment(**settings)
            )
            stack.enter_context(popen)
            stack.callback(popen.kill)
            assert popen.stdout is not None
            url = popen.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), (directory / "log").read_text()
            return Process(popen, stack.enter_context(httpx.Client(base_url=url, timeout=30, trust_env=False)))

        yield launch


@pytest.fixture
def launch(tiny_model: Path, tmp_path: Path) -> Iterator[Launch]:
    with launcher(tiny_model, tmp_path) as launch:
        yield launch


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One process for the tests that do not end it."""
    with launcher(tiny_model, tmp_path_factory.mktemp("process")) as launch:
        yield launch()


def some_prefix(seed: int) -> bytes:
    kv = torch.randn(2, 2, 5, 4, 8, generator=torch.Generator().manual_seed(seed))
    return dump(kv, {})


def test_tasks_share_steps_and_answer_as_they_do_alone(server: Process) -> None:
    names = ["poet", "clerk", "chef", "base"]
    for seed, name in enumerate(names[:3]):
        assert server.http.put(f"/tasks/{name}", content=some_prefix(seed)).status_code == 201

    def ask(name: str) -> dict[str, Any]:
        return server.generate("the sea", adapter_id=name, max_new_tokens=40, min_new_tokens=40, details=True)

    alone = [ask(name) for name in names]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, names))
    assert [each["generated_text"] for each in together] == [each["generated_text"] for each in alone]
    assert len({each["generated_text"] for each in alone}) == 4
    mixed = [
        line for line in server.http.get("/metrics").text.split("\n") if line.startswith("polyprefix_mixed_steps_total")
    ]
    assert float(mixed[0].split()[1]) > 0


def test_every_way_of_choosing_tokens_is_answered(server: Process) -> None:
    beams = server.generate("the sea", num_beams=3, max_new_tokens=8, details=True)
    assert beams["details"]["generated_tokens"] >= 1
    assert beams["details"]["steps"][1] > beams["details"]["steps"][0]
    best = server.generate("the sea", best_of=3, do_sample=True, seed=1, max_new_tokens=8, details=True)["details"]
    assert len(best["best_of_sequences"]) == 2
    full = server.generate("sea", details=True, decoder_input_details=True, top_n_tokens=3, max_new_tokens=2)["details"]
    assert [entry["text"] for entry in full["prefill"]] == ["s", "e", "a"]
    assert [entry["logprob"] is None for entry in full["prefill"]] == [True, False, False]
    assert [len(tops) for tops in full["top_tokens"]] == [3, 3]
    assert full["tokens"][0]["logprob"] == pytest.approx(full["top_tokens"][0][0]["logprob"])
    seeded = [server.generate("sea", temperature=1.5, seed=7, max_new_tokens=16)["generated_text"] for _ in range(2)]
    assert seeded[0] == seeded[1]
    streamed = server.http.post("/generate_stream", json={"inputs": "sea", "parameters": {"max_new_tokens": 16}})
    events = events_of(streamed.text)
    assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"]
    assert events[-1]["generated_text"] == server.generate("sea", max_new_tokens=16)["generated_text"]


def test_foreign_prompts_and_texts_are_compiled_and_served(server: Process) -> None:
    text = server.http.put("/tasks/brief", json={"text": "be brief: "})
    assert (text.status_code, text.json()["num_virtual_tokens"]) == (201, 10)
    behind = server.generate("hi", adapter_id="brief", max_new_tokens=12)["generated_text"]
    assert behind == server.generate("be brief: hi", max_new_tokens=12)["generated_text"]
    soft = save({"prompt_embeddings": torch.randn(4, 32, generator=torch.Generator().manual_seed(0))})
    assert server.http.put("/tasks/soft", content=soft).json()["kind"] == "prompt_tuning"
    assert server.generate("hi", adapter_id="soft", max_new_tokens=4)["version"] == 1


def test_a_text_that_fills_the_context_is_422(server: Process) -> None:
    text = server.http.put("/tasks/long", json={"text": "a" * 128})
    assert (text.status_code, text.json()["error_type"]) == (422, "validation")
    assert server.http.get("/tasks/long").status_code == 404


def test_an_acknowledged_upload_survives_kill_9(launch: Launch) -> None:
    server = launch()
    assert server.http.put("/tasks/poet", content=some_prefix(1)).status_code == 201
    before = server.generate("the sea", adapter_id="poet")
    server.end(signal.SIGKILL)
    again = launch()
    assert again.generate("the sea", adapter_id="poet") == before
    assert again.http.get("/tasks/poet/prefix").content == some_prefix(1)


def test_an_idle_server_ends_with_zero(launch: Launch) -> None:
    assert launch(DRAIN_NOTICE="0.1").end(signal.SIGINT) == 0


def test_a_loaded_server_finishes_what_it_began_and_ends_with_zero(launch: Launch) -> None:
    server = launch(DRAIN_NOTICE="0.1")
    body = {"inputs": "sea", "parameters": {"max_new_tokens": 120, "min_new_tokens": 120}}
    with server.http.stream("POST", "/generate_stream", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.popen.send_signal(signal.SIGTERM)
        events = events_of("\n".join(lines))
    assert events[-1]["details"]["generated_tokens"] == 120
    assert server.popen.wait(40) == 0


@pytest.mark.parametrize("how", ["asked to end", "its engine dies"])
def test_a_log_that_cannot_be_written_keeps_it_neither_from_answering_nor_from_ending(launch: Launch, how: str) -> None:
    server = launch(log_file=Path("/dev/full"))
    assert server.generate("the sea", max_new_tokens=2)["generated_text"]
    if how == "asked to end":
        assert server.end() >= 0, "by itself, and not of the signal"
    else:
        threads = Path(f"/proc/{server.popen.pid}/task").iterdir()
        for child in " ".join((thread / "children").read_text() for thread in threads).split():
            os.kill(int(child), signal.SIGKILL)
        assert server.popen.wait(40) > 0


def test_the_second_signal_ends_it_at_once(launch: Launch) -> None:
    server = launch(DRAIN_NOTICE="60", DRAIN_TIMEOUT="60")
    server.popen.send_signal(signal.SIGTERM)
    while server.http.get("/ready").status_code != 503:
        pass
    assert server.end() == -signal.SIGTERM


PID_ONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def makes_namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*PID_ONE, "true"], check=False).returncode == 0


def wait_for(what: Callable[[], int], seconds: float = 60) -> int:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.mark.skipif(not makes_namespaces(), reason="no namespaces here")
@pytest.mark.parametrize("has_loaded", [False, True])
def test_as_a_containers_first_process_it_is_ended_too(tiny_model: Path, tmp_path: Path, has_loaded: bool) -> None:
    """From that one the kernel keeps every signal that it does not handle, whoever sends it."""
    options = ["--model", str(tiny_model), "--store", str(tmp_path), "--port", "0"]
    settings = environment(DRAIN_NOTICE="60", DRAIN_TIMEOUT="60")
    with subprocess.Popen([*PID_ONE, *COMMAND, *options], env=settings, stdout=subprocess.PIPE, text=True) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            server = wait_for(lambda: int(children.read_text() or 0))
            handled = re.compile(r"^SigCgt:\s*(\w+)$", re.MULTILINE)
            status = Path(f"/proc/{server}/status")
            bit = 1 << signal.SIGTERM - 1
            wait_for(lambda: int(handled.findall(status.read_text())[0], 16) & bit)
            if has_loaded:
                assert outer.stdout is not None
                url = outer.stdout.readline().strip()
                os.kill(server, signal.SIGTERM)  # drains for a minute
                wait_for(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 503)
            os.kill(server, signal.SIGTERM)
            assert outer.wait(30) == 128 + signal.SIGTERM
        finally:
            outer.kill()


def refused(*options: str, **settings: str) -> str:
    """What the command says when it refuses to start; run in this process, since it ends at once."""
    app = typer.Typer()
    app.command()(serve)
    environment = {f"POLYPREFIX_{name}": value for name, value in settings.items()}
    done = CliRunner().invoke(app, ["--port", "0", *options], env=environment)
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit)
    return done.output


def test_a_checkpoint_without_a_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    said = refused("--model", str(tmp_path), "--store", str(tmp_path / "store"))
    assert f"polyprefix serve: no tokenizer beside the model {tmp_path}" in said


def test_wrong_settings_are_refused_with_their_reason(tiny_model: Path, tmp_path: Path) -> None:
    model = ("--model", str(tiny_model), "--store", str(tmp_path / "store"))
    assert "no model could be read" in refused("--model", str(tmp_path / "nowhere"))
    assert "max_model_len is 129; expected 1 to 128" in refused(*model, "--max-model-len", "129")
    assert "max_num_seqs" in refused(*model, MAX_NUM_SEQS="many")
    for size in ("much", "0", "-1GiB"):
        assert "prefix_cache_bytes" in refused(*model, "--prefix-cache-bytes", size)
    assert "No such option" in refused(*model, "--no-such-option")


def test_the_network_is_not_served_without_keys_unless_told_so_in_words(tiny_model: Path, tmp_path: Path) -> None:
    model = ("--model", str(tiny_model), "--store", str(tmp_path / "store"))
    assert "say --no-auth" in refused(*model, "--host", "0.0.0.0")


def test_no_auth_is_refused_once_there_is_a_key(launch: Launch, tiny_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    directory = ("--store", str(store))
    runner = CliRunner()
    assert runner.invoke(admin, ["tenant", "add", "acme", *directory]).exit_code == 0
    secret = runner.invoke(admin, ["key", "create", "acme", *directory]).output.strip()
    assert "leave --no-auth out" in refused("--model", str(tiny_model), *directory, "--no-auth")
    server = launch(METRICS_PORT="0")
    asked = {"json": {"inputs": "a", "parameters": {"max_new_tokens": 1}}}
    assert server.http.post("/generate", **asked).status_code == 401
    assert server.http.post("/generate", headers={"authorization": f"Bearer {secret}"}, **asked).status_code == 200
    log = (tmp_path / "log").read_text()
    port = next(json.loads(line)["port"] for line in log.splitlines() if '"metrics"' in line)
    assert "polyprefix_steps_total" in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert server.end() == 0


def test_a_server_that_is_told_where_makes_its_first_key_and_only_that_one(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "first-key"
    asked = {"json": {"inputs": "a", "parameters": {"max_new_tokens": 1}}}
    server = launch(FIRST_KEY_FILE=str(path))
    secret = path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert server.http.post("/generate", **asked).status_code == 401
    headers = {"authorization": f"Bearer {secret}"}
    assert server.http.post("/generate", headers=headers, **asked).status_code == 200
    assert len(server.http.get("/admin/keys?tenant=default", headers=headers).json()["keys"]) == 1
    assert server.end() == 0
    path.unlink()
    again = launch(FIRST_KEY_FILE=str(path))
    assert again.http.post("/generate", headers=headers, **asked).status_code == 200
    assert not path.exists()


def test_a_server_for_everybody_makes_no_key_that_would_close_it(launch: Launch, tmp_path: Path) -> None:
    for _ in range(2):
        server = launch(FIRST_KEY_FILE=str(tmp_path / "first-key"), NO_AUTH="true")
        assert server.http.get("/tasks").status_code == 200
        assert server.end() == 0
    assert not (tmp_path / "first-key").exists()


def test_a_taken_port_is_told(server: Process, tiny_model: Path, tmp_path: Path) -> None:
    port = str(server.http.base_url.port)
    assert f"127.0.0.1:{port}: Address already in use" in refused("--model", str(tiny_model), "--port", port)
    own_port = ("--port", "0", "--store", str(tmp_path / "store"), "--metrics-port", port)
    assert f"127.0.0.1:{port}, for the metrics: Address" in refused("--model", str(tiny_model), *own_port)
    assert "drain_timeout: Input should be a finite number" in refused(DRAIN_TIMEOUT="inf")
    assert refused("--dtype", "fp32").startswith("polyprefix serve: dtype: Input should be 'auto', 'float32'")
    assert refused("--port", "99999").count("\n") == 1


def test_accepted_connections_send_each_write_at_once():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        assert listener.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY only where the protocol is named"
