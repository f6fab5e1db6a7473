"""The operator's commands, on a store that nobody has open and through a running server's routes: one and the same."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefix_store.prefix import BackboneSpec
from prefix_store.store import PrefixStore
from prefix_store.tenants import Scope, Tenant
from server.admin_cli import admin, store
from tests.server.conftest import FINGERPRINT, Guarded, prefix_file
from tests.server.fakes import SHAPE

Command = Callable[..., Any]


def run(app: Any, *arguments: str, exit_code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == exit_code, (done.output, done.exception)
    return done.output


@pytest.fixture(params=["store", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path, start_guarded: Callable[..., Guarded]) -> Iterator[list[str]]:
    if request.param == "store":
        yield ["--store", str(tmp_path / "store")]
    else:
        house = start_guarded(Tenant(name="root"))
        yield ["--url", str(house.server.http.base_url), "--api-key", house.keys["root/operator"]]


def test_tenants_and_keys_are_made_changed_listed_and_taken_away(place: list[str]) -> None:
    added = json.loads(run(admin, "tenant", "add", "acme", "--weight", "2", "--limit", "max_tasks=7", *place))
    assert (added["weight"], added["limits"]["max_tasks"], added["limits"]["upload_burst"]) == (2.0, 7, 100)
    assert "a tenant 'acme' already" in run(admin, "tenant", "add", "acme", *place, exit_code=1)
    options = ("--limit", "tokens_per_minute=9", "--limit", "max_queued=none")
    changed = json.loads(run(admin, "tenant", "set", "acme", *options, *place))
    assert (changed["weight"], changed["limits"]["max_tasks"], changed["limits"]["tokens_per_minute"]) == (2.0, 7, 9)
    assert "no tenant 'nobody'" in run(admin, "tenant", "set", "nobody", "--weight", "3", *place, exit_code=1)

    secret = run(admin, "key", "create", "acme", "--expires-in-days", "1", *place).strip()
    assert secret.startswith("pp_")
    (key,) = [json.loads(line) for line in run(admin, "key", "list", "acme", *place).splitlines()]
    assert (key["key_id"], key["scopes"]) == (secret[3:11], ["generate", "tasks"])
    assert key["expires_at"] is not None
    assert json.loads(run(admin, "key", "revoke", key["key_id"], *place))["revoked_at"] is not None
    assert "no API key" in run(admin, "key", "revoke", "nobody00", *place, exit_code=1)

    assert json.loads(run(admin, "tenant", "disable", "acme", *place))["disabled"] is True
    assert json.loads(run(admin, "tenant", "set", "acme", "--enabled", *place))["disabled"] is False
    names = [json.loads(line)["name"] for line in run(admin, "tenant", "list", *place).splitlines()]
    assert "acme" in names


@pytest.mark.parametrize(
    "arguments",
    [
        ["tenant", "add", "../up"],
        ["tenant", "add", "x", "--weight", "0"],
        ["tenant", "add", "x", "--weight", "1e-18"],
        ["tenant", "add", "x", "--weight", "nan"],
        ["tenant", "add", "x", "--limit", "unknown=1"],
        ["key", "create", "x", "--scope", "everything"],
    ],
)
def test_what_means_nothing_is_refused_with_its_reason(tmp_path: Path, arguments: list[str]) -> None:
    place = ["--store", str(tmp_path / "store")]
    run(admin, "tenant", "add", "y", *place)
    assert "error: " in run(admin, *arguments, *place, exit_code=1)


@pytest.mark.parametrize(
    ("app", "arguments"),
    [(store, ["verify"]), (store, ["sweep"]), (store, ["backup", "copy"]), (admin, ["key", "create", "acme"])],
)
def test_a_store_that_is_not_there_is_told_and_not_made(tmp_path: Path, app: Any, arguments: list[str]) -> None:
    """An empty one would be whole, and its backup too."""
    place = tmp_path / "mistyped"
    assert "there is no store in" in run(app, *arguments, "--store", str(place), exit_code=1)
    assert not place.exists()


@pytest.mark.parametrize("number", ["-1", "9" * 5000])
def test_a_limit_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    assert "NAME=NUMBER" in run(admin, "tenant", "add", "x", "--limit", f"max_tasks={number}", exit_code=2)


def test_a_store_is_backed_up_checked_restored_and_swept(place: list[str], tmp_path: Path) -> None:
    run(admin, "tenant", "add", "acme", *place)
    assert json.loads(run(store, "backup", str(tmp_path / "copy"), *place))["path"] == str(tmp_path / "copy")
    for wrong in (str(tmp_path / "copy"), str(tmp_path / ("x" * 300))):
        assert "nothing is yet" in run(store, "backup", wrong, *place, exit_code=1)
    again = str(tmp_path / "again")
    run(store, "restore", str(tmp_path / "copy"), "--store", again)
    assert '"name": "acme"' in run(admin, "tenant", "list", "--store", again)
    assert run(store, "verify", *place) == ""
    assert json.loads(run(store, "sweep", *place)) == {"num_bytes": 0}


@pytest.mark.parametrize("path", ["copy", "/tmp/a\0b", "/tmp/" + "x" * 300])
def test_a_path_that_no_backup_can_have_is_refused(start_guarded: Callable[..., Guarded], path: str) -> None:
    answer = start_guarded(Tenant(name="root")).ask("root/operator", "POST", "/admin/backup", json={"path": path})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_damage_is_told_and_ends_with_an_error(tmp_path: Path) -> None:
    opened = PrefixStore(tmp_path / "store", backbone=BackboneSpec("tiny", SHAPE, FINGERPRINT))
    body = prefix_file()
    facts = {"kind": "prefix", "num_virtual_tokens": 3, "backbone_checked": False}
    opened.publish("default", "poet", upload=body, native=body, **facts)
    opened.close()
    (file,) = (tmp_path / "store" / "default").iterdir()
    file.chmod(0o600)
    file.write_bytes(body[:-1] + b"x")
    damage = json.loads(run(store, "verify", "--store", str(tmp_path / "store"), exit_code=1))
    assert damage["where"] == "default/poet/1"


def test_a_file_that_is_missing_is_told_by_a_backup_and_one_that_is_damaged_by_a_restore(tmp_path: Path) -> None:
    opened = PrefixStore(tmp_path / "store", backbone=BackboneSpec("tiny", SHAPE, FINGERPRINT))
    body = prefix_file()
    opened.publish(
        "default", "poet", upload=body, native=body, kind="prefix", num_virtual_tokens=3, backbone_checked=False
    )
    opened.close()
    place = ["--store", str(tmp_path / "store")]
    run(store, "backup", str(tmp_path / "whole"), *place)
    (file,) = (tmp_path / "store" / "default").iterdir()
    file.unlink()
    name = f"default/{file.name}"
    copied = json.loads(run(store, "backup", str(tmp_path / "copy"), *place, exit_code=1))
    assert copied == {"path": str(tmp_path / "copy"), "num_files": 0, "left_out": [name]}

    kept = tmp_path / "whole" / name
    kept.chmod(0o600)
    kept.write_bytes(body[:-1] + b"x")
    again = str(tmp_path / "again")
    restored = json.loads(run(store, "restore", str(tmp_path / "whole"), "--store", again, exit_code=1))
    assert restored == {"store": again, "num_files": 0, "left_out": [name]}
    assert json.loads(run(store, "verify", "--store", again, exit_code=1))["where"] == "default/poet/1"


def test_a_store_that_is_typed_is_asked_though_the_shell_names_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ["--store", str(tmp_path / "store")]
    monkeypatch.setenv("POLYPREFIX_URL", "http://127.0.0.1:1")
    run(admin, "tenant", "add", "acme", *place)
    assert '"name": "acme"' in run(admin, "tenant", "list", *place)
    assert "no answer from http://127.0.0.1:1" in run(admin, "tenant", "list", exit_code=1)
    assert "not both" in run(admin, "tenant", "list", *place, "--url", "http://127.0.0.1:1", exit_code=2)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_no_proxy_is_asked_who_is_on_this_machine(
    place: list[str], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """It could not find it, and would see the key."""
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", "")
    run(admin, "tenant", "add", "acme", *place)


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "socks5://127.0.0.1:1"), ("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_FILE", "/tmp")]
)
def test_an_environment_that_cannot_be_used_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    said = run(admin, "tenant", "list", "--url", "https://192.0.2.1", exit_code=1)
    assert "that the environment names cannot be used" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("where", [["--url", "http://[::1"], ["--url", "http://127.0.0.1:1", "--api-key", "pp_…"]])
def test_what_no_request_can_hold_is_told_in_a_line(where: list[str]) -> None:
    assert "that cannot be asked" in run(admin, "tenant", "list", *where, exit_code=1)


def test_a_store_that_a_server_has_open_is_left_alone(start_guarded: Callable[..., Guarded], tmp_path: Path) -> None:
    start_guarded(Tenant(name="acme"))
    said = run(admin, "tenant", "list", "--store", str(tmp_path / "store"), exit_code=1)
    assert "another process has the store" in said


def test_a_server_that_does_not_answer_is_told() -> None:
    assert "no answer from http://127.0.0.1:1" in run(
        admin, "tenant", "list", "--url", "http://127.0.0.1:1", exit_code=1
    )


@pytest.mark.parametrize("reply", [b"HTTP/1.1 301 Moved\r\nlocation: /\r\n", b"HTTP/1.1 502 Bad Gateway\r\n"])
def test_a_proxy_that_answers_in_the_servers_place_is_told(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(reply + b"content-length: 6\r\n\r\n<html>")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "not as Polyprefix does" in run(admin, "tenant", "list", "--url", url, exit_code=1)
        thread.join()


@pytest.mark.parametrize("never", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", "never"])
def test_a_moment_that_no_calendar_has_is_422(start_guarded: Callable[..., Guarded], never: str) -> None:
    body = {"tenant": "root", "scopes": ["tasks"], "expires_at": never}
    answer = start_guarded(Tenant(name="root")).ask("root/operator", "POST", "/admin/keys", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_a_disabled_tenants_key_is_refused(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="root"), Tenant(name="acme"))
    house.ask("root/operator", "PATCH", "/admin/tenants/acme", json={"disabled": True})
    assert house.ask("acme/generate", "POST", "/generate", json={"inputs": "a"}).status_code == 401
    assert house.ask(f"root/{Scope.GENERATE}", "POST", "/generate", json={"inputs": "a"}).status_code == 200
