"""Whatever is sent is answered as the contract says, by a server as it is run, which then serves on.

Uploads, names, bodies to generate from, and bytes that are hardly HTTP.
"""

import io
import json
import pickle
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import event
from tokenizers import Tokenizer as Backend
from transformers import GPT2LMHeadModel

from batching.engine import Engine
from batching.gpt2 import Backbone
from prefix_store.formats import dump
from prefix_store.tenants import Scope, Tenant
from tests.server.conftest import Guarded, Running, guarded, prefix_file, running
from tests.server.fakes import EchoEngine
from tests.server.test_process import Process, launcher

JSON = {"content-type": "application/json"}
SHAPE = [2, 2, 3, 4, 8]
NUM_BYTES = 2 * 2 * 3 * 4 * 8 * 4
WHOLE = {"dtype": "F32", "shape": SHAPE, "data_offsets": [0, NUM_BYTES]}
ZEROS = b"\0" * NUM_BYTES


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server has its store and its log."""
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def server(tiny_model: Path, directory: Path) -> Iterator[Process]:
    """With short deadlines, so that the slow are told so soon."""
    with launcher(tiny_model, directory) as launch:
        yield launch(BODY_TIMEOUT="0.5", HEADER_TIMEOUT="0.5")


@pytest.fixture(autouse=True)
def serves_on(server: Process, directory: Path) -> Iterator[None]:
    """After every test, whatever it sent, the server answers, and nothing of it is kept."""
    yield
    assert server.http.get("/health").status_code == 200
    assert server.http.get("/tasks/bad").status_code == 404
    assert not list((directory / "store").glob("*/*.tmp"))


def file(header: Any, body: bytes = ZEROS, num_header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if num_header_bytes is None else num_header_bytes) + text + body


def one(name: str = "past_key_values", body: bytes = ZEROS, **changes: Any) -> bytes:
    return file({name: {**WHOLE, **changes}}, body)


def of_dtype(dtype: str, bits: int) -> bytes:
    num_bytes = NUM_BYTES // 4 * bits // 8
    return one(dtype=dtype, data_offsets=[0, num_bytes], body=b"\0" * num_bytes)


def kv(n_layer: int = 2, num_virtual_tokens: int = 3, n_head: int = 4, head_dim: int = 8, value: float = 0.1) -> bytes:
    return dump(torch.full((n_layer, 2, num_virtual_tokens, n_head, head_dim), value), {})


def with_value(value: float) -> bytes:
    tensor = torch.zeros(SHAPE)
    tensor[1, 1, 2, 3, 7] = value
    return dump(tensor, {})


def an_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


ENTRY = json.dumps(WHOLE).encode()
UPLOADS = {
    "empty": b"",
    "7 bytes": b"1234567",
    "header beyond the body": file({"past_key_values": WHOLE}, num_header_bytes=10_000),
    "header of 2^64-1": file({"past_key_values": WHOLE}, num_header_bytes=2**64 - 1),
    "header of 64 KiB + 1": file(b" " * ((64 << 10) + 1)),
    "header not UTF-8": file(b'{"\xff": 1}'),
    "header with BOM": file(b"\xef\xbb\xbf" + json.dumps({"past_key_values": WHOLE}).encode()),
    "header not JSON": file(b"{past_key_values}"),
    "header an array": file([WHOLE]),
    "leading spaces": file(b"  " + json.dumps({"past_key_values": WHOLE}).encode()),
    "duplicate tensor": file(b'{"past_key_values":' + ENTRY + b',"past_key_values":' + ENTRY + b"}"),
    "duplicate metadata": file(b'{"__metadata__":{"a":"1","a":"2"},"past_key_values":' + ENTRY + b"}"),
    "overlapping offsets": file({"past_key_values": WHOLE, "b": {**WHOLE, "data_offsets": [10, NUM_BYTES + 10]}}),
    "a hole": one(data_offsets=[8, NUM_BYTES + 8], body=ZEROS + b"\0" * 8),
    "trailing bytes": one(body=ZEROS + b"\0\0"),
    "2 bytes missing": one(body=ZEROS[:-2]),
    "shape [2, 2^63]": one(shape=[2, 2**63]),
    "shape [0, 2^63]": one(shape=[0, 2**63], data_offsets=[0, 0], body=b""),
    "shape [0, 2^62, 2^62]": one(shape=[0, 2**62, 2**62], data_offsets=[0, 0], body=b""),
    **{
        f"dtype {name}": of_dtype(name, bits)
        for name, bits in {
            "F4": 4,
            "F6_E2M3": 6,
            "F6_E3M2": 6,
            "F8_E4M3": 8,
            "F8_E5M2": 8,
            "F64": 64,
            "C64": 64,
            "BOOL": 8,
            "I32": 32,
        }.items()
    },
    "one NaN": with_value(float("nan")),
    "one Inf": with_value(float("inf")),
    "one 1e38": with_value(1e38),
    "one 7e4": with_value(7e4),
    "a layer too few": kv(n_layer=1),
    "a layer too many": kv(n_layer=3),
    "wrong heads": kv(n_head=2, head_dim=16),
    "0 virtual tokens": kv(num_virtual_tokens=0),
    "as many virtual tokens as the context": kv(num_virtual_tokens=128),
    "name with ..": one("../../etc/passwd"),
    "name with NUL": one("past_key_values\0"),
    "empty name": one(""),
    "rank 10,000": one(shape=[1] * 10_000),
    "6,000 tensors": file(b"{" + b",".join(b'"%d":{}' % i for i in range(6_000)) + b"}"),
    "pickle": pickle.dumps({"past_key_values": [0.0] * 10}),
    "zip": an_archive(),
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 100,
    "HTML": b"<html><body>404</body></html>",
    "another backbone": dump(torch.zeros(SHAPE), {"backbone": "e" * 64}),
}


@pytest.mark.parametrize("body", UPLOADS.values(), ids=UPLOADS)
def test_a_file_that_is_no_prefix_is_422_and_nothing_is_kept(server: Process, body: bytes) -> None:
    answer = server.http.put("/tasks/bad", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert len(answer.json()["error"]) < 1000


def test_a_wrong_hash_is_422(server: Process) -> None:
    answer = server.http.put("/tasks/bad", content=kv(), headers={"x-content-sha256": "0" * 64})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_200_000_tensors_are_more_than_any_prefix_is_413(server: Process) -> None:
    body = file(b"{" + b",".join(b'"%d":{}' % i for i in range(200_000)) + b"}")
    answer = server.http.put("/tasks/bad", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


def test_an_upload_that_says_that_it_is_too_large_is_413_before_it_comes(server: Process) -> None:
    status, answer = exchange(server, request("PUT", "/tasks/bad", b"", length=10**9))
    assert (status, json.loads(answer)["error_type"]) == (413, "too_large")


def test_an_upload_that_ends_too_early_is_not_kept(server: Process, directory: Path) -> None:
    with connected(server) as connection:
        connection.sendall(request("PUT", "/tasks/bad", kv()[:-10], length=len(kv())))
    assert server.http.get("/tasks/bad").status_code == 404
    assert not list((directory / "store").glob("*/*"))


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_the_limit_is_413(server: Process, chunked: bool) -> None:
    body = b"\0" * (600 << 10)
    answer = server.http.put("/tasks/bad", content=iter([body]) if chunked else body)
    assert (answer.status_code, answer.json()["error_type"]) == (413, "too_large")


@pytest.mark.parametrize(
    "headers", [{"content-type": "multipart/form-data; boundary=x"}, {"content-encoding": "gzip"}], ids=str
)
def test_multipart_and_encodings_are_415(server: Process, headers: dict[str, str]) -> None:
    answer = server.http.put("/tasks/bad", content=kv(), headers=headers)
    assert (answer.status_code, answer.json()["error_type"]) == (415, "unsupported_media_type")


def test_a_stale_if_match_is_412(server: Process) -> None:
    answer = server.http.put("/tasks/bad", content=kv(), headers={"if-match": '"' + "0" * 64 + '"'})
    assert (answer.status_code, answer.json()["error_type"]) == (412, "precondition_failed")


NAMES = ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "a%0d%0aX:%20y", "%ff", "a%20b", "%F0%9F%8C%8A", "a" * 129]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tasks/{}"),
        ("PUT", "/tasks/{}"),
        ("PATCH", "/tasks/{}"),
        ("DELETE", "/tasks/{}"),
        ("GET", "/tasks/{}/prefix"),
        ("POST", "/tasks/{}/generate"),
        ("POST", "/tasks/{}/generate_stream"),
    ],
)
def test_a_bad_name_is_404_405_or_422_and_its_log_one_line(server: Process, method: str, path: str, name: str) -> None:
    body = b'{"inputs": "a"}' if method == "POST" else b"{}"
    status, answer = exchange(server, request(method, path.format(name), body, content_type="application/json"))
    assert status in (404, 405, 422)
    assert json.loads(answer)["error_type"] in ("not_found", "method_not_allowed", "validation")


def test_a_bad_name_in_a_body_is_404(server: Process) -> None:
    for name in ("..", "a\0b", "a\r\nX: y", "a b", "🌊", "a" * 129, "a" * 10_000):
        answer = server.http.post("/generate", json={"inputs": "a", "task_id": name})
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
        assert len(answer.json()["error"]) < 300


def test_the_log_is_one_object_a_line_whatever_the_names_were(server: Process, directory: Path) -> None:
    for name in NAMES:
        exchange(server, request("GET", f"/tasks/{name}", b""))
    lines = (directory / "log").read_text().splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


PARAMETERS = {
    **{f"max_new_tokens {value}": f'"max_new_tokens": {value}' for value in (0, -1, 10**9, "true", '"5"', 1.5)},
    "max_new_tokens of 4,000 digits": f'"max_new_tokens": {"9" * 4_000}',
    "context + 1": '"max_new_tokens": 128',
    "NaN": '"temperature": NaN',
    "Infinity": '"temperature": Infinity',
    "1e999": '"temperature": 1e999',
    "duplicate keys": '"seed": 1, "seed": 2',
    "5 stops": '"stop": ["a", "b", "c", "d", "e"]',
    "an empty stop": '"stop": [""]',
    "a 65-character stop": f'"stop": ["{"a" * 65}"]',
    "top_k -1": '"top_k": -1',
    "top_p 0": '"top_p": 0',
    "top_p 1.0001": '"top_p": 1.0001',
    "repetition_penalty 0": '"repetition_penalty": 0',
    "temperature -1": '"temperature": -1',
    "seed -1": '"seed": -1',
    "seed 2^64": f'"seed": {2**64}',
    "best_of 17": '"best_of": 17',
    "num_beams 17": '"num_beams": 17',
    "top_n_tokens 21": '"top_n_tokens": 21',
    "top_k 257": '"top_k": 257',
}


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_parameter_out_of_its_range_is_422(server: Process, path: str, parameters: str) -> None:
    body = f'{{"inputs": "a", "parameters": {{{parameters}}}}}'
    answer = server.http.post(path, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


BODIES: dict[str, tuple[bytes, int]] = {
    "a lone surrogate": (b'{"inputs": "\\ud800"}', 422),
    "an array": (b"[]", 422),
    "null": (b"null", 422),
    "a string": (b'"a"', 422),
    "a prompt over 32 KiB": (b'{"inputs": "' + b"a" * (32 << 10) + b'a"}', 422),
    "31 KiB of a": (b'{"inputs": "' + b"a" * (31 << 10) + b'"}', 422),
    "a 5,000-digit integer": (b'{"inputs": "a", "parameters": {"seed": ' + b"9" * 5_000 + b"}}", 400),
    "max_new_tokens of 5,000 digits": (
        b'{"inputs": "a", "parameters": {"max_new_tokens": ' + b"9" * 5_000 + b"}}",
        400,
    ),
    "100,000 deep": (b"[" * 100_000, 400),
    "100,000 deep in a field": (b'{"inputs": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "truncated": (b'{"inputs": "a', 400),
    "empty": (b"", 400),
    "UTF-16": ('{"inputs": "a"}'.encode("utf-16"), 400),
    "an unknown task": (b'{"inputs": "a", "task_id": "nobody"}', 404),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_a_body_that_means_nothing_is_refused(server: Process, body: bytes, status: int) -> None:
    started_at = time.monotonic()
    answer = server.http.post("/generate", content=body, headers=JSON)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert time.monotonic() - started_at < 10


def test_prefix_and_prompt_and_new_tokens_fill_the_context_and_no_more(server: Process) -> None:
    assert server.http.put("/tasks/three", content=kv()).status_code == 201
    ask = {"inputs": "a", "task_id": "three"}
    for max_new_tokens, status in ((124, 200), (125, 422)):
        body = {**ask, "parameters": {"max_new_tokens": max_new_tokens}}
        assert server.http.post("/generate", json=body).status_code == status
    assert server.http.delete("/tasks/three").status_code == 204
    assert server.http.post("/generate", json=ask).status_code == 404, "a deleted task is an unknown one"


def test_text_plain_is_415(server: Process) -> None:
    answer = server.http.post("/generate", content=b'{"inputs": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_an_empty_prompt_is_the_end_of_text_token(server: Process) -> None:
    answer = server.generate("", max_new_tokens=1, details=True)
    assert answer["details"]["prompt_tokens"] == 1


def test_a_body_that_comes_too_slowly_is_408(server: Process) -> None:
    status, answer = exchange(server, request("PUT", "/tasks/bad", b"0123456789", length=1000))
    assert (status, json.loads(answer)["error_type"]) == (408, "timeout")


def test_an_answer_for_browsers_says_what_they_may_not_do(server: Process) -> None:
    headers = server.http.get("/tasks").headers
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /ping HTT", b"GET /ping HTTP/1.1\r\nhost: x\r\nx-half: "],
    ids=["nothing", "half", "half headers"],
)
def test_headers_that_do_not_come_are_cut_off(server: Process, sent: bytes) -> None:
    started_at = time.monotonic()
    assert exchange(server, sent, closes=True)[1] == b""
    assert 0.4 < time.monotonic() - started_at < 10


def test_dripped_headers_are_cut_off_also_after_a_request(server: Process) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        started_at = time.monotonic()
        connection.settimeout(0.05)
        while not is_closed(connection):
            assert time.monotonic() - started_at < 10


def is_closed(connection: socket.socket) -> bool:
    """Send one more byte, and see whether anybody is there."""
    try:
        connection.sendall(b"G")
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("content-length: 5\r\ntransfer-encoding: chunked", 400),
        ("content-length: 5\r\ncontent-length: 6", 400),
        ("x: a\0b", 400),
        ("x: " + "a" * (200 << 10), 431),
        ("\r\n".join(f"x{i}: {'a' * 100}" for i in range(2_000)), 431),
    ],
    ids=["length and chunked", "two lengths", "NUL", "200 KiB in one", "200 KiB in many"],
)
def test_broken_or_oversized_headers_are_refused(server: Process, head: str, status: int) -> None:
    sent = f"POST /generate HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\nhello".encode()
    answered, body = exchange(server, sent, closes=True)
    assert answered in (status, None)  # none where the cut came before the answer was read
    assert answered is None or set(json.loads(body)) == {"error", "error_type"}


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"\x16\x03\x01\x02\0\x01", b"hello\r\n\r\n"])
def test_what_is_no_http_is_400_or_cut_off(server: Process, sent: bytes) -> None:
    assert exchange(server, sent, closes=True)[0] in (400, None)


def test_the_same_request_id_at_the_same_time_is_answered_twice(server: Process) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = server.http.post("/generate", json={"inputs": "a"}, headers={"x-request-id": "same"})
        return answer.status_code, answer.headers["x-request-id"]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(8))) == {(200, "same")}


def test_finite_numbers_that_overflow_on_this_backbone_are_422_after_a_trial_run(
    tmp_path: Path, tiny_model: Path, byte_tokenizer: Backend
) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny_model)
    model.transformer.h[0].attn.c_attn.weight.data *= 20  # so that a large key times its query is more than 65,504
    backbone = Backbone.from_model(model, dtype="float16")
    with running(tmp_path, byte_tokenizer, Engine(backbone, max_num_seqs=2)) as server:  # type: ignore[arg-type]
        server.upload("cold")
        answer = server.http.put("/tasks/hot", content=dump(1e4 * torch.randn(SHAPE).sign(), {}))
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
        assert "does not run on this backbone" in answer.json()["error"]
        assert server.http.get("/tasks/hot").status_code == 404


def test_a_full_disk_is_507_and_nothing_is_kept(start: Callable[..., Running]) -> None:
    server = start()
    sql = server.services.store._database._engine
    with sql.connect() as connection:
        num_pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    event.listen(sql, "checkout", lambda dbapi, *_: dbapi.execute(f"PRAGMA max_page_count={num_pages}"))
    answers = (server.http.put(f"/tasks/t{i}", content=prefix_file(3, i / 1000)) for i in range(1000))
    full = next(answer for answer in answers if answer.status_code != 201)
    assert (full.status_code, full.json()["error_type"]) == (507, "out_of_space")
    num_kept = len(server.http.get("/tasks?limit=1000").json()["tasks"])
    assert len(list(server.services.settings.store.glob("*/*.safetensors"))) == num_kept


# -- what an error repeats of what was sent ---------------------------------------------------------------------------

LONG = "Z" * 4_000
OTHER_LONG = "\N{WATER WAVE}" * 1_000
ECHOES: dict[str, dict[str, Any]] = {
    "a task to read": {"method": "GET", "url": f"/tasks/{LONG}"},
    "a task to delete": {"method": "DELETE", "url": f"/tasks/{LONG}"},
    "a task to patch": {"method": "PATCH", "url": f"/tasks/{LONG}", "json": {"version": 1}},
    "a task to upload": {"method": "PUT", "url": f"/tasks/{LONG}", "content": prefix_file()},
    "a task's prefix": {"method": "GET", "url": f"/tasks/{LONG}/prefix"},
    "a task to generate with": {"method": "POST", "url": f"/tasks/{LONG}/generate", "json": {"inputs": "a"}},
    "a task in a body": {"method": "POST", "url": "/generate", "json": {"inputs": "a", "task_id": LONG}},
    "emoji in a body": {"method": "POST", "url": "/generate", "json": {"inputs": "a", "task_id": OTHER_LONG}},
    "a key of a body": {"method": "PATCH", "url": "/tasks/0", "json": {LONG: 1}},
    "a key of emoji": {"method": "PATCH", "url": "/tasks/0", "json": {"config": {"parameters": {OTHER_LONG: 1}}}},
    "a value of a body": {"method": "POST", "url": "/generate", "json": {"inputs": "a", "stream": LONG}},
    "a template": {"method": "PATCH", "url": "/tasks/0", "json": {"config": {"prompt_template": LONG}}},
    "no JSON": {"method": "POST", "url": "/generate", "content": LONG, "headers": JSON},
    "an etag": {"method": "DELETE", "url": "/tasks/0", "headers": {"if-match": LONG}},
    "another etag": {"method": "PUT", "url": "/tasks/0", "content": prefix_file(), "headers": {"if-none-match": LONG}},
    "a hash": {"method": "PUT", "url": "/tasks/0", "content": prefix_file(), "headers": {"x-content-sha256": LONG}},
    "a content type": {"method": "POST", "url": "/generate", "content": "{}", "headers": {"content-type": LONG}},
    "an encoding": {"method": "POST", "url": "/generate", "content": "{}", "headers": {"content-encoding": LONG}},
    "a page": {"method": "GET", "url": f"/tasks?after={LONG}"},
    "a limit": {"method": "GET", "url": f"/tasks?limit={LONG}"},
    "a version": {"method": "GET", "url": f"/tasks/0/prefix?version={LONG}"},
    "a route": {"method": "GET", "url": f"/{LONG}"},
    "a method": {"method": LONG, "url": "/generate"},
    "a tenant": {"method": "PATCH", "url": f"/admin/tenants/{LONG}", "json": {"weight": 1.0}},
    "a new tenant": {"method": "POST", "url": "/admin/tenants", "json": {"name": "-" + LONG[:120]}},
    "a key to revoke": {"method": "DELETE", "url": f"/admin/keys/{LONG}"},
    "a scope": {"method": "POST", "url": "/admin/keys", "json": {"tenant": "acme", "scopes": [LONG]}},
    "a key's tenant": {"method": "POST", "url": "/admin/keys", "json": {"tenant": LONG[:128], "scopes": ["tasks"]}},
    "a moment": {
        "method": "POST",
        "url": "/admin/keys",
        "json": {"tenant": "acme", "scopes": ["tasks"], "expires_at": LONG},
    },
    **{
        f"a file's {what}": {"method": "PUT", "url": "/tasks/0", "content": content}
        for what, content in {
            "tensor": one(LONG),
            "tensor of emoji": one(OTHER_LONG),
            "six tensors": file({f"{i}{LONG}": {**WHOLE, "data_offsets": [0, 0]} for i in range(6)}),
            "dtype": one(dtype=LONG),
            "shape": one(shape=[LONG] * 6),
            "offsets": one(data_offsets=[LONG] * 6),
            "format": dump(torch.zeros(SHAPE), {}).replace(b"polyprefix/1", b"Z" * 12),
            "metadata": file({"__metadata__": {LONG: 1}}, b""),
            "backbone": prefix_file(backbone=OTHER_LONG),
        }.items()
    },
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Guarded]:
    with guarded(tmp_path_factory.mktemp("house"), byte_tokenizer, EchoEngine(), (Tenant(name="acme"),)) as house:
        house.keys["all"] = house.server.services.store.tenants.create_key("acme", list(Scope))[1]
        assert house.ask("all", "PUT", "/tasks/0", content=prefix_file()).status_code == 201
        yield house


@pytest.mark.parametrize("sent", ECHOES.values(), ids=ECHOES)
def test_an_error_repeats_no_more_than_64_escaped_characters(house: Guarded, sent: dict[str, Any]) -> None:
    options = {name: value for name, value in sent.items() if name not in ("method", "url")}
    answer = house.ask("all", sent["method"], sent["url"], **options)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error.count("Z") <= 64
    assert error.isprintable()
    assert OTHER_LONG[0] not in error
    assert error.count("\\U") <= 7


MANY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a message's parts": ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": [0] * 50_000}]}),
    "empty parts": ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 50_000}]}),
    "unknown keys": ("PATCH", "/tasks/0", {f"key{i}": i for i in range(5_000)}),
    "parts of a mix": ("POST", "/generate", {"inputs": "a", "task_id": {"mix": {f"a/{i}": -1 for i in range(5_000)}}}),
}


@pytest.mark.parametrize(("method", "url", "sent"), MANY.values(), ids=MANY)
def test_of_many_things_that_are_wrong_a_few_are_told(house: Guarded, method: str, url: str, sent: Any) -> None:
    answer = house.ask("all", method, url, json={"model": "0", **sent} if url.startswith("/v1") else sent)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert len(error["message"] if isinstance(error, dict) else error) < 1_000


def connected(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.http.base_url.port), 20)


def request(method: str, target: str, body: bytes, length: int | None = None, **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + body


def exchange(server: Process, sent: bytes, closes: bool = False) -> tuple[int | None, bytes]:
    """Send these bytes and read until the server closes: the status and the body, or neither."""
    answer = b""
    with connected(server) as connection:
        try:
            connection.sendall(sent)
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            assert closes
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else None), body
