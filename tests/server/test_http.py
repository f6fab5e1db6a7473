"""What is read and refused at the door: bodies, content types, routes, methods. Every answer is JSON."""

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import Running

JSON = {"content-type": "application/json"}


def post(server: Running, body: bytes, headers: dict[str, str] | None = None, path: str = "/generate") -> Any:
    return server.http.post(path, content=body, headers=JSON if headers is None else headers)


def refused(answer: Any) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"error", "error_type"}
    return answer.status_code, body["error_type"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b'{"inputs": "a"',
        b'{"inputs": "\xff"}',
        '{"inputs": "a"}'.encode("utf-16"),
        '{"inputs": "a"}'.encode("utf-16-le"),
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000,
        b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5000 + b"}}",
    ],
)
def test_a_body_that_is_no_json_is_400(server: Running, body: bytes) -> None:
    assert refused(post(server, body)) == (400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b'"a"', b"7", b"{}", b'{"inputs": 5}', b'{"inputs": "\\ud800"}', b'{"inputs": "a", "\\udc00": 1}']
    + [b'{"inputs": "a", "inputs": "b"}', b'{"inputs": "a", "parameters": {"x": {"y": 1, "y": 2}}}']
    + [b'{"inputs": "a", "parameters": {"temperature": ' + number + b"}}" for number in (b"NaN", b"Infinity", b"1e999")]
    + [b'{"inputs": "a", "unknown": -Infinity}', b'{"inputs": "a", "unknown": 1e999}']
    + [b'{"inputs": "a", "parameters": []}', b'{"inputs": "a", "stream": 1}'],
)
def test_a_value_that_json_or_the_schema_should_not_hold_is_422(server: Running, body: bytes) -> None:
    assert refused(post(server, body)) == (422, "validation")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "identity"},
    ],
)
def test_another_content_type_or_any_encoding_is_415(server: Running, headers: dict[str, str]) -> None:
    assert refused(post(server, b'{"inputs": "a"}', headers)) == (415, "unsupported_media_type")


def test_a_charset_beside_the_content_type_is_fine(server: Running) -> None:
    assert post(server, b'{"inputs": "a"}', {"content-type": "Application/JSON; charset=utf-8"}).status_code == 200


def test_a_body_over_the_limit_is_413_by_its_length_or_while_it_is_read(server: Running) -> None:
    body = b'{"inputs": "' + b"a" * (256 << 10) + b'"}'
    assert refused(post(server, body)) == (413, "too_large")
    chunked = server.http.post("/generate", content=iter([body[:100_000], body[100_000:]]), headers=JSON)
    assert refused(chunked) == (413, "too_large")


def test_an_unknown_route_is_404_and_another_method_405(server: Running) -> None:
    assert refused(server.http.get("/nowhere")) == (404, "not_found")
    assert refused(server.http.get("/generate/")) == (404, "not_found")
    answer = server.http.delete("/generate")
    assert refused(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert server.http.options("/tasks/x").headers["allow"] == "POST, PUT, GET, PATCH, DELETE"


def test_an_error_of_ours_is_500_with_the_request_id_and_no_trace(server: Running) -> None:
    server.services.store.tasks, kept = None, server.services.store.tasks  # type: ignore[method-assign,assignment]
    try:
        answer = server.http.get("/tasks", headers={"x-request-id": "mine"})
    finally:
        server.services.store.tasks = kept  # type: ignore[method-assign]
    assert answer.json() == {"error": "the server failed at request mine", "error_type": "internal"}
    assert answer.status_code == 500


def test_a_query_value_that_is_none_is_422(server: Running) -> None:
    for query in ("limit=0", "limit=1001", "limit=x", "limit=NaN", "after=..", "after=%00"):
        assert refused(server.http.get(f"/tasks?{query}")) == (422, "validation")


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/tasks?after=a&after=b"),
        ("GET", "/tasks?limit=2&limit=2"),
        ("GET", "/tasks/e2e/prefix?version=1&version=2"),
        ("PUT", "/tasks/new?serve=false&serve=true"),
    ],
)
def test_a_query_that_says_the_same_twice_is_422(server: Running, method: str, url: str) -> None:
    assert refused(server.http.request(method, url)) == (422, "validation")


def test_an_upload_with_a_query_that_means_nothing_is_422_and_not_served(server: Running) -> None:
    assert refused(server.http.put("/tasks/new?served=false")) == (422, "validation")


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "a%0d%0aX:%20y", "%ff", "a%20b", "%F0%9F%8C%8A", "a" * 129],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "POST"])
def test_a_bad_name_is_404_or_422_on_every_route(server: Running, method: str, name: str) -> None:
    body = b'{"inputs": "a"}' if method == "POST" else b"{}"
    answer = raw(server, method, f"/tasks/{name}", body)
    assert answer[0] in (404, 405, 422), answer
    assert "error_type" in answer[1]


def raw(server: Running, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Over a socket of our own, since clients tidy paths up."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        head = f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        connection.sendall(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status, _, text = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), json.loads(text)


@pytest.mark.parametrize(
    "head",
    [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "x: a\0b",
        "x: " + "a" * (200 << 10),
    ],
)
def test_broken_or_oversized_headers_are_refused_or_cut_off(server: Running, head: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        try:
            connection.sendall(f"POST /generate HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\nhello".encode())
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.http.get("/ping").status_code == 200


def test_only_names_that_the_operator_knows_are_answered_to(start: Callable[..., Running]) -> None:
    server = start(allowed_hosts="api.example.org, 127.0.0.1")
    for host in ("api.example.org", "API.example.org:8000", "127.0.0.1:1"):
        assert server.http.get("/info", headers={"host": host}).status_code == 200
    for host in ("evil.example.org", "", "api.example.org.evil.org"):
        assert refused(server.http.get("/info", headers={"host": host})) == (400, "bad_request")
    assert server.http.get("/health", headers={"host": "10.0.0.1"}).status_code == 200


def test_a_small_body_that_nobody_read_keeps_the_connection_and_a_large_one_ends_it(server: Running) -> None:
    small, large = (server.http.post("/nowhere", content=b"x" * size) for size in (1000, 100_000))
    assert "connection" not in small.headers
    assert large.headers["connection"] == "close"


def test_a_body_that_ends_too_early_stores_nothing(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(b"PUT /tasks/cut HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nshort")
    assert server.http.get("/tasks/cut").status_code == 404


def test_the_document_names_every_body_and_status(server: Running) -> None:
    document = server.http.get("/openapi.json").json()
    generate = document["paths"]["/generate"]["post"]
    schema = generate["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert schema.rpartition("/")[2] in document["components"]["schemas"]
    assert {"200", "400", "404", "413", "415", "422", "424", "429", "503", "504"} <= set(generate["responses"])
    assert document["components"]["schemas"]["GenerateParameters"]["properties"]["top_k"]["anyOf"][0]["maximum"] == 256
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(document["components"]["schemas"])
    assert server.http.get("/docs").headers["content-type"].startswith("text/html")
