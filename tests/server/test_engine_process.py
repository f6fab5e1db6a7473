"""The engine in its own process: how it ends, who ends with it, and the channel between the two."""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from prefix_store.prefix import Prefix
from server.channel import HEADER, Channel, LoopChannel, packed
from server.engine_messages import Allocate, Drop, Keep, LoadBackbone
from server.engine_process import EngineProcess, EngineStartError
from server.sent_prefixes import SentPrefixes
from tests.child_processes import child_pids
from tests.server.test_process import Launch, Process, launch, launcher

__all__ = ["launch"]


def engine_of(server: Process) -> int:
    (pid,) = child_pids(server.popen.pid)
    return pid


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


def test_a_killed_engine_ends_its_requests_and_the_server_with_an_error(launch: Launch) -> None:
    server = launch()
    engine = engine_of(server)
    os.kill(engine, signal.SIGSTOP)  # so that the request is there when it ends
    threading.Timer(0.3, os.kill, (engine, signal.SIGKILL)).start()
    answer = server.http.post("/generate", json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
    assert answer.json()["error"] == "the engine's process ended with status -9"
    assert server.popen.wait(20) == 1


def test_an_engine_that_hangs_is_ended_with_the_server(launch: Launch) -> None:
    server = launch(ENGINE_STALL_TIMEOUT="0.3")
    engine = engine_of(server)
    os.kill(engine, signal.SIGSTOP)
    answer = server.http.post("/generate", json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error"]) == (503, "the engine has not answered for 0.3 s")
    assert server.popen.wait(20) == 1
    wait_until_gone(engine)


def test_a_machine_that_stood_still_is_no_engine_that_hangs(launch: Launch) -> None:
    server = launch(ENGINE_STALL_TIMEOUT="1")
    processes = (engine_of(server), server.popen.pid)
    os.kill(processes[0], signal.SIGSTOP)  # so that the engine has not answered when the machine goes on
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.generate, "a", max_new_tokens=1)
        time.sleep(0.3)
        os.kill(processes[1], signal.SIGSTOP)
        time.sleep(3)
        for process in reversed(processes):
            os.kill(process, signal.SIGCONT)
        assert asked.result()
    assert server.http.get("/health").status_code == 200


def test_signals_to_all_processes_leave_the_engine_to_the_server_and_it_does_not_outlive_it(launch: Launch) -> None:
    server = launch()
    engine = engine_of(server)
    os.kill(engine, signal.SIGTERM)
    os.kill(engine, signal.SIGINT)
    assert server.generate("a", max_new_tokens=1)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(engine)


def test_why_the_engine_did_not_start_is_told(tmp_path: Path) -> None:
    engine = EngineProcess()
    with pytest.raises(EngineStartError, match="no model could be read"):
        engine.load(LoadBackbone(str(tmp_path), "cpu", "float32"))
    engine.end()


def test_that_there_is_no_memory_for_so_many_slots_is_told(tiny_model: Path) -> None:
    engine = EngineProcess()
    engine.load(LoadBackbone(str(tiny_model), "cpu", "float32"))
    with pytest.raises(EngineStartError, match="Lower --max-num-seqs or --max-model-len"):
        engine.allocate(Allocate(10**9, None, has_reserve=False))
    engine.end()


def test_an_engine_that_ends_while_it_starts_is_told(tiny_model: Path) -> None:
    engine = EngineProcess()
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineStartError, match="the engine's process ended with status -9"):
        engine.load(LoadBackbone(str(tiny_model), "cpu", "float32"))
    engine.end()


def test_what_reads_the_model_does_not_outlive_the_server() -> None:
    endless = "import time, server.checkpoint_main as m; m.read_checkpoint = lambda *_: time.sleep(3600); m.main()"
    reader = subprocess.Popen([sys.executable, "-c", endless, "0", "gpt2", "cpu", "float32"], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.close()  # as it is when the server is killed
    assert reader.wait(60) == 1


def test_what_reads_models_is_not_in_the_engine() -> None:
    """transformers takes a hundred megabytes."""
    imported = "import sys, server.engine_main; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imported], check=False).returncode == 0


def test_numbers_so_small_that_they_are_slow_count_as_zero(tiny_model: Path, tmp_path: Path) -> None:
    """A model whose only difference between tokens is made of such numbers: without it the first token is chosen."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    model = GPT2LMHeadModel.from_pretrained(tiny_model, tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1e-40)
        model.lm_head.weight.zero_()
        model.lm_head.weight[5] = 1e38
        assert model(torch.tensor([[1]])).logits.argmax() == 5
    model.save_pretrained(directory)
    with launcher(directory, tmp_path) as launch:
        details = launch().generate("a", max_new_tokens=1, details=True)["details"]
    assert [token["id"] for token in details["tokens"]] == [0]


def test_messages_come_whole_and_in_order_however_they_are_cut() -> None:
    chance = random.Random(0)
    messages = [chance.randbytes(chance.choice([0, 1, 10, 1000, 100_000])) for _ in range(50)]
    stream = b"".join(map(packed, messages))
    heard: list[bytes] = []
    channel = LoopChannel(heard.append, lambda: None)
    while stream:
        size = chance.choice([1, HEADER.size - 1, 100, 70_000])
        channel.data_received(stream[:size])
        stream = stream[size:]
    assert heard == messages


def test_each_end_hears_what_the_other_says_and_then_that_it_has_ended() -> None:
    ours, theirs = socket.socketpair()
    messages = [b"", b"x" * 3_000_000, {"a": (1, 2)}]

    def echo() -> None:
        channel = Channel(theirs)
        with theirs:
            for _ in messages:
                channel.send(channel.receive())

    threading.Thread(target=echo).start()

    async def talk() -> list[object]:
        heard: list[object] = []
        ended = asyncio.Event()
        channel = LoopChannel(heard.append, ended.set)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=ours)
        for message in messages:
            channel.send(message)
        await asyncio.wait_for(ended.wait(), 20)
        channel.send("to nobody")
        return heard

    assert asyncio.run(talk()) == messages


class Interrupted:
    """A socket that gives a part of what is waited for, as to a process that was stopped and goes on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, num_bytes: int, _: int) -> bytes:
        return self._sock.recv(min(num_bytes, 3))


def test_a_process_that_was_stopped_in_the_middle_of_a_message_reads_it_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Channel(theirs).send(["a", "message"])
        channel = Channel(Interrupted(ours))  # type: ignore[arg-type]
        assert channel.has_message
        assert channel.receive() == ["a", "message"]
        assert not channel.has_message
        theirs.close()
        with pytest.raises(EOFError):
            channel.receive()


def test_whoever_waits_hears_that_the_other_side_has_ended() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(packed("last") + HEADER.pack(10) + b"half")
    theirs.close()
    with ours:
        channel = Channel(ours)
        assert channel.has_message
        assert channel.receive() == "last"
        with pytest.raises(EOFError):
            channel.receive()


def test_a_prefix_goes_over_once_while_any_request_has_it() -> None:
    a, b = (Prefix(torch.zeros(1, 2, 3, 1, 8), "f" * 64, "prefix") for _ in range(2))
    told: list[Keep | Drop] = []
    sent = SentPrefixes(told.append)
    sent.use([a, None, b])
    sent.use([a])
    assert told == [Keep(0, a), Keep(1, b)]
    sent.leave([a, None, b])
    assert told[2:] == [Drop(1)]
    assert [sent.number_of(each) for each in (a, b, "a")] == [0, None, None]
    sent.leave([a])
    sent.use([a])
    assert told[3:] == [Drop(0), Keep(2, a)]


def test_what_both_sides_know_goes_over_as_its_number() -> None:
    ours, theirs = socket.socketpair()
    large = b"x" * 100_000
    with ours, theirs:
        channel = Channel(theirs)
        channel.known[7] = large
        message = packed(["a", large], lambda thing: 7 if thing is large else None)
        assert len(message) < 100
        ours.sendall(message)
        assert channel.receive()[1] is large
