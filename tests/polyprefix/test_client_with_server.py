"""The client and the commands against a real server on a tiny model: both sides read the contract the same way."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from clients import cli
from clients.client import AsyncClient, Client
from clients.errors import NotFound, PreconditionFailed, ValidationFailed

TEXT = "hot -> cold\n"


@pytest.fixture
def client(server_url: str) -> Iterator[Client]:
    with Client(server_url) as client:
        yield client


@pytest.fixture
def prefix_file(tmp_path: Path) -> Path:
    path = tmp_path / "poet.safetensors"
    tensor = torch.randn(2, 2, 5, 2, 16, generator=torch.Generator().manual_seed(1))
    save_file({"past_key_values": tensor}, path, metadata={"format": "polyprefix/1"})
    return path


def test_an_uploaded_file_is_served_and_given_back_byte_for_byte(client: Client, prefix_file: Path) -> None:
    sent = []
    done = client.upload("poet", prefix_file, progress=lambda num_bytes, total: sent.append((num_bytes, total)))
    size = prefix_file.stat().st_size
    assert sent == [(size, size)]
    assert (done.created, done.version.version, done.version.kind) == (True, 1, "prefix")
    assert (done.version.num_virtual_tokens, done.version.num_bytes, done.version.backbone_checked) == (5, size, False)
    answer = client.generate("poet", "the sea", max_new_tokens=4, details=True)
    assert (answer.task_id, answer.version) == ("poet", 1)
    assert answer.details is not None
    assert (answer.details.generated_tokens, answer.details.prefix_tokens) == (4, 5)
    assert "".join(token.text for token in answer.details.tokens) == answer.generated_text
    assert client.download("poet") == prefix_file.read_bytes()
    client.delete("poet")


def test_a_stream_tells_the_same_text_as_the_whole_answer(client: Client) -> None:
    client.upload_text("opposites", TEXT)
    whole = client.generate("opposites", "wet ->", max_new_tokens=16)
    events = list(client.stream("opposites", "wet ->", max_new_tokens=16))
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert "".join(event.token.text for event in events) == whole.generated_text
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details is not None


def test_versions_are_listed_rolled_back_and_guarded(client: Client) -> None:
    first = client.upload_text("clerk", TEXT)
    client.upload_text("clerk", TEXT * 2)
    with pytest.raises(PreconditionFailed):
        client.use_version("clerk", 1, if_match=first.version.sha256)
    task = client.use_version("clerk", 1)
    assert (task.version, [version.version for version in task.versions]) == (1, [1, 2])
    assert client.task("clerk").served.sha256 == first.version.sha256
    assert client.task("clerk").served.kind == "text"


def test_a_tasks_defaults_are_set_and_win_over_nothing_of_the_requests_own(client: Client) -> None:
    client.upload_text("chef", TEXT)
    task = client.set_config(
        "chef", description="cooks", prompt_template="{inputs} ->", parameters={"max_new_tokens": 3}
    )
    assert (task.config.description, task.config.prompt_template) == ("cooks", "{inputs} ->")
    by_default, by_request = (
        client.generate("chef", "boil", details=True, **own) for own in ({}, {"max_new_tokens": 5})
    )
    assert by_default.details is not None
    assert by_request.details is not None
    assert (by_default.details.generated_tokens, by_request.details.generated_tokens) == (3, 5)


def test_pages_of_tasks_follow_one_another(client: Client) -> None:
    for name in ("page-a", "page-b", "page-c"):
        client.upload_text(name, TEXT)
    first = client.tasks(limit=2, after="page")
    second = client.tasks(limit=2, after=first.next)
    assert [task.task_id for task in first.tasks] == ["page-a", "page-b"]
    assert second.tasks[0].task_id == "page-c"


def test_refusals_arrive_as_their_classes(client: Client) -> None:
    with pytest.raises(NotFound):
        client.generate("nobody", "x")
    with pytest.raises(NotFound):
        client.task("nobody")
    with pytest.raises(ValidationFailed):
        client.generate(None, "x", max_new_tokens=100_000)
    with pytest.raises(ValidationFailed):
        client.upload("broken", b"not safetensors")
    with pytest.raises(ValidationFailed) as caught:
        next(client.stream(None, "x", top_k=-1))
    assert caught.value.request_id


def test_the_operators_questions_are_answered(client: Client) -> None:
    client.health()
    assert client.ready() == "ready"
    info = client.info()
    assert len(info.fingerprint) == 64
    assert info.max_input_length > 0
    assert "polyprefix_mixed_steps_total" in client.metrics()


def test_an_async_client_carries_many_requests_at_once(server_url: str) -> None:
    async def burst() -> list[str]:
        async with AsyncClient(server_url) as client:
            await client.upload_text("crowd", TEXT)
            asks = (client.generate("crowd", f"{n} ->", max_new_tokens=4) for n in range(20))
            return [answer.generated_text for answer in await asyncio.gather(*asks)]

    assert len(asyncio.run(burst())) == 20


def test_the_commands_work_from_upload_to_deletion(server_url: str, prefix_file: Path) -> None:
    app = typer.Typer()
    for command in (cli.upload, cli.tasks, cli.generate, cli.delete):
        app.command()(command)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--url", server_url])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert run("upload", "shell", str(prefix_file)) == "shell: version 1, prefix, 5 virtual tokens\n"
    assert "shell" in run("tasks")
    assert run("generate", "shell", "wet", "--max-new-tokens", "4").endswith("\n")
    assert run("generate", "shell", "wet", "--num-beams", "2", "--max-new-tokens", "4").endswith("\n")
    assert run("delete", "shell") == "shell: deleted\n"
