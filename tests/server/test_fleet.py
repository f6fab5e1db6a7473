"""Two servers over one bucket and one database: it makes no difference which one is asked, whatever else is down."""

# ruff: noqa: F401, F811 -- fixtures of the store's tests, imported by name
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from tokenizers import Tokenizer as Backend

from server.admin_cli import admin, store
from tests.prefix_store.conftest import fleet, new_fleet, postgresql_server, seaweedfs_server
from tests.prefix_store.homes import FleetHome
from tests.prefix_store.servers import PostgreSQL, SeaweedFS
from tests.server.conftest import Running, prefix_file, running
from tests.server.fakes import EchoEngine
from tests.server.test_admin import run

pytestmark = pytest.mark.fleet

SECONDS = 2.5  # in which a change holds everywhere: two, and a moment for the question itself


@pytest.fixture
def servers(fleet: FleetHome, byte_tokenizer: Backend) -> Iterator[tuple[Running, Running]]:
    """Whose clients send a key that was made beside them, by the operator's command."""
    place = ("--store", fleet.bucket, "--registry", fleet.registry)
    run(admin, "tenant", "add", "acme", *place)
    secret = run(admin, "key", "create", "acme", *place).splitlines()[-1]  # after its line for the audit log
    with ExitStack() as stack:
        started = [
            stack.enter_context(running(fleet.bucket, byte_tokenizer, EchoEngine(), registry=fleet.registry))
            for _ in range(2)
        ]
        for server in started:
            server.http.headers["authorization"] = f"Bearer {secret}"
        yield started[0], started[1]


def status(server: Running) -> int:
    return server.http.post("/generate", json={"inputs": "ab", "task_id": "poet"}).status_code


def ready(server: Running) -> object:
    answer = server.http.get("/ready")
    assert answer.status_code == 200
    return answer.json()["status"]


def wait_for_status(server: Running, wanted: int) -> None:
    until = time.monotonic() + SECONDS
    while (found := status(server)) != wanted:
        assert time.monotonic() < until, found
        time.sleep(0.05)


def test_an_upload_to_one_server_is_served_by_the_other_at_once_and_a_deletion_soon(
    servers: tuple[Running, Running],
) -> None:
    one, other = servers
    assert status(other) == 404
    one.upload("poet")
    assert status(other) == 200
    assert one.http.delete("/tasks/poet").status_code == 204
    wait_for_status(other, 404)


def test_a_key_that_is_revoked_beside_the_servers_is_refused_by_both_soon(
    servers: tuple[Running, Running], fleet: FleetHome
) -> None:
    one, other = servers
    one.upload("poet")
    assert (status(one), status(other)) == (200, 200)
    key_id = one.http.headers["authorization"].removeprefix("Bearer pp_")[:8]
    run(admin, "key", "revoke", key_id, "--store", fleet.bucket, "--registry", fleet.registry)
    for server in servers:
        wait_for_status(server, 401)


def test_without_the_database_what_is_cached_is_served_uploads_are_refused_and_readiness_says_so(
    servers: tuple[Running, Running], postgresql_server: PostgreSQL
) -> None:
    one, other = servers
    one.upload("poet")
    assert (status(one), status(other)) == (200, 200)
    postgresql_server.stop()
    try:
        time.sleep(SECONDS)
        for server in servers:
            assert ready(server) == "degraded"
            assert status(server) == 200
            assert server.http.put("/tasks/clerk", content=prefix_file()).status_code == 503
            assert server.http.get("/health").status_code == 200
    finally:
        postgresql_server.start()
    time.sleep(1.5)
    assert [ready(server) for server in servers] == ["ready", "ready"]
    one.upload("clerk")


def test_without_the_bucket_what_is_cached_is_served_uploads_are_refused_and_readiness_says_so(
    servers: tuple[Running, Running], seaweedfs_server: SeaweedFS
) -> None:
    one, other = servers
    one.upload("poet")
    assert status(one) == 200
    with seaweedfs_server.gone():
        assert ready(one) == "degraded"
        assert status(one) == 200
        assert status(other) == 503  # it knows the task and has not read its file yet
        assert one.http.put("/tasks/clerk", content=prefix_file(value=0.5)).status_code == 503
    assert ready(one) == "ready"
    assert status(other) == 200


def test_the_operators_commands_look_after_a_store_that_servers_have_open(
    servers: tuple[Running, Running], fleet: FleetHome
) -> None:
    servers[0].upload("poet")
    place = ("--store", fleet.bucket, "--registry", fleet.registry)
    assert '"where"' not in run(store, "verify", *place)
    assert '"num_bytes": 0' in run(store, "sweep", *place)
    assert "own tools" in run(store, "backup", "copy", *place, exit_code=1)
    assert "a directory" in run(store, "restore", ".", "--store", fleet.bucket, exit_code=2)
