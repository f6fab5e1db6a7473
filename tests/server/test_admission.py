"""What is refused before the router: at once, without the body, and counted under its route."""

import socket
from collections.abc import Callable

import pytest

from tests.server.conftest import Running

Start = Callable[..., Running]

HEAD = b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
QUEUEING = {  # by path, the path of its route
    "/": "/",
    "/generate": "/generate",
    "/generate_stream": "/generate_stream",
    "/tasks/e2e": "/tasks/{task_id}",
    "/tasks/e2e/generate": "/tasks/{task_id}/generate",
    "/tasks/e2e/generate_stream": "/tasks/{task_id}/generate_stream",
    "/score": "/score",
    "/v1/completions": "/v1/completions",
    "/v1/chat/completions": "/v1/chat/completions",
}


def test_there_is_no_room_before_the_body_has_come(start: Start) -> None:
    server = start(drain_notice=20.0)
    server.on_loop(server.services.lifecycle.close)
    for path in QUEUEING:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST " + path.encode() + HEAD)
            assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    counts = server.http.get("/metrics").text
    for route in QUEUEING.values():
        assert f'polyprefix_requests_total{{route="{route}",status="503"}} 1.0' in counts


@pytest.mark.parametrize("path", ["/tokenize", "/tasks/e2e/rollback"])
def test_what_queues_no_rows_needs_no_room(start: Start, path: str) -> None:
    server = start(drain_notice=20.0)
    server.on_loop(server.services.lifecycle.close)
    assert server.http.post(path, json={"inputs": "ab", "version": 1}).status_code in (200, 404)
