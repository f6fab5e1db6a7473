"""Refusals, faults and repeats; every test that talks runs with the sync and the async client."""

import gc
import pickle
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from clients.client import AsyncClient, Client
from clients.errors import (
    ERRORS,
    ApiError,
    ConnectionFailed,
    GenerationFailed,
    InvalidRequest,
    InvalidUrl,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Quarantined,
    RateLimited,
    TimedOut,
    Unavailable,
    seconds_to_wait,
)
from clients.retries import Retries

OK = {"generated_text": "x"}


@pytest.mark.parametrize(("status", "error_type", "error_class"), ERRORS)
def test_each_row_of_the_contracts_table_has_its_class(fake, status, error_type, error_class):
    fake.will_answer(status, {"error": "what was wrong", "error_type": error_type}, x_request_id="r1")
    with Client(fake.url, retries=Retries(max_retries=0)) as client, pytest.raises(error_class) as caught:
        client.generate("e2e", "x")
    error = caught.value
    assert type(error) is error_class
    assert (error.status, error.error_type, error.message) == (status, error_type, "what was wrong")
    assert str(error) == f"what was wrong ({status} {error_type}, request r1)"


def test_an_error_type_that_a_newer_server_made_up_is_told_by_its_status(fake, ask):
    fake.will_answer(412, {"error": "no", "error_type": "brand_new"})
    with pytest.raises(PreconditionFailed) as caught:
        ask("generate", "e2e", "x")
    assert caught.value.error_type == "brand_new"


def test_an_answer_of_something_in_between_is_told_by_its_status(fake, ask):
    fake.will_answer(404, b"<html>proxy</html>")
    fake.will_answer(302, None, location="http://elsewhere/")
    with pytest.raises(NotFound, match="proxy"):
        ask("generate", "e2e", "x")
    with pytest.raises(ApiError, match="302"):
        ask("generate", "e2e", "x")


def test_a_quarantined_version_is_a_generation_that_failed():
    assert issubclass(Quarantined, GenerationFailed)


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(RateLimited("slow down", 429, "rate_limited", "r1", 2.0)))
    assert (error.message, error.request_id, error.retry_after) == ("slow down", "r1", 2.0)


def test_a_refused_connection_says_where_and_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(ConnectionFailed) as caught:
        client.health()
    assert f"http://127.0.0.1:{port}" in str(caught.value)
    assert "polyprefix serve" in str(caught.value)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_is_not_asked_who_is_on_this_machine(fake, ask, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    fake.will_answer(200, OK)
    assert ask("generate", "e2e", "x").generated_text == "x"


def test_certificates_are_read_where_there_is_something_to_verify(fake, ask, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")  # as a removed Conda environment leaves it
    fake.will_answer(204)
    ask("delete", "e2e")
    with Client("https://192.0.2.1") as client, pytest.raises(ConnectionFailed, match="SSL_CERT_FILE"):
        client.delete("e2e")


def test_a_proxy_that_cannot_be_used_is_told_in_a_line(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "nonsense://127.0.0.1:1")
    with Client("http://192.0.2.1") as client, pytest.raises(ConnectionFailed, match="the proxy that the environment"):
        client.health()


def test_a_server_that_says_nothing_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.1) as client, pytest.raises(TimedOut):
            client.health()


@pytest.mark.parametrize("url", ["localhost:8000", "10.0.0.1:8000", "example.com"])
def test_a_url_without_its_scheme_is_told_to_add_it(url):
    with pytest.raises(InvalidUrl, match=f"add http://, as in http://{url}"):
        Client(url)


@pytest.mark.parametrize(
    "url", ["ftp://example.com", "http://", "http://here:port", "http://here/\udcff", "http://here?x=1"]
)
def test_something_that_is_no_servers_url_is_told_what_was_expected(url):
    with pytest.raises(InvalidUrl, match="expected http://HOST:PORT"):
        AsyncClient(url)


@pytest.mark.parametrize(
    ("inputs", "parameters", "words"),
    [
        ("a\ud800", {}, r"'\\ud800' has no UTF-8 form"),
        ("x", {"stop": ["\udcff"]}, r"'\\udcff' has no UTF-8 form"),
        ("x", {"temperature": float("nan")}, "not JSON compliant"),
        ("x", {"stop": {"a", "set"}}, "not JSON serializable"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_what_cannot_be_written_down_is_refused_before_anything_is_sent(fake, ask, verb, inputs, parameters, words):
    with pytest.raises(InvalidRequest, match=words):
        ask(verb, "e2e", inputs, **parameters)
    assert fake.received == []


@pytest.mark.parametrize("key", ["sécret\n", "a-secret ", ""])
def test_a_key_that_no_header_can_carry_is_refused_without_being_told(key):
    with pytest.raises(InvalidRequest, match="the API key is empty, or holds") as caught:
        Client(api_key=key)
    assert "cret" not in str(caught.value)


def test_a_password_in_the_url_is_not_told():
    with Client("http://me:hidden@127.0.0.1:1/base") as client, pytest.raises(ConnectionFailed) as caught:
        client.health()
    assert "hidden" not in str(caught.value)
    assert "from http://127.0.0.1:1/base: " in str(caught.value)


def test_a_user_and_password_in_the_url_are_sent(fake):
    fake.will_answer(200, OK)
    with Client(fake.url.replace("http://", "http://me:hidden@")) as client:
        client.generate("e2e", "x")
    assert fake.received[0].headers["authorization"] == "Basic bWU6aGlkZGVu"
    with pytest.raises(InvalidUrl) as caught:
        Client("http://me:hidden@here?x=1")
    assert "hidden" not in str(caught.value)


def test_retries_without_a_word_of_the_server_wait_as_long_as_they_may():
    retries = Retries(max_retries=20, max_wait=60)
    error = Unavailable("draining", 503, "unavailable")
    waits = [retries.seconds(error, attempt, repeatable=True) for attempt in range(21)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, *[60] * 13, None]


@pytest.mark.parametrize(("status", "error_type"), [(429, "overloaded"), (429, "rate_limited"), (503, "unavailable")])
def test_a_busy_server_is_asked_again_after_the_time_it_names(fake, ask, status, error_type):
    fake.will_answer(status, {"error": "busy", "error_type": error_type}, retry_after="0")
    fake.will_answer(200, OK)
    assert ask("generate", "e2e", "x").generated_text == "x"
    assert len(fake.received) == 2


def test_an_upload_is_sent_again_whole(fake, ask):
    fake.will_answer(429, {"error": "busy", "error_type": "rate_limited"}, retry_after="0")
    fake.will_answer(404, {"error": "gone", "error_type": "not_found"})
    with pytest.raises(NotFound):
        ask("upload", "e2e", bytes(100_000), progress=lambda sent, total: None)
    assert [len(received.body) for received in fake.received] == [100_000, 100_000]


def test_the_thread_of_a_client_that_is_garbage_ends(fake):
    def threads() -> int:
        return sum(thread.name == "polyprefix-client" for thread in threading.enumerate())

    fake.will_answer(200, OK)
    before, client = threads(), Client(fake.url)
    client.generate("e2e", "x")
    assert threads() == before + 1
    del client
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_ends_that_never_used_its_parents_client(fake):
    fake.will_answer(200, OK)
    program = f"""
import os, sys
from clients.client import Client
client = Client({fake.url!r})
client.generate('e2e', 'x')
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("end", ["", "raise SystemError('an error of the callers')"])
def test_who_does_not_close_a_client_ends_nevertheless(fake, end):
    fake.will_answer(200, OK)
    program = f"from clients.client import Client\nclient = Client({fake.url!r})\nclient.generate('e2e', 'x')\n{end}\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, b"an error of the callers" in ended.stderr) == ((1, True) if end else (0, False))


def test_a_server_that_stays_busy_is_given_up_after_a_bounded_number_of_attempts(fake, ask):
    for _ in range(4):
        fake.will_answer(429, {"error": "queue full", "error_type": "overloaded"}, retry_after="0")
    with pytest.raises(Overloaded):
        ask("generate", "e2e", "x")
    assert len(fake.received) == 4


def test_a_wait_that_is_too_long_is_the_callers_decision(fake, ask):
    fake.will_answer(429, {"error": "limit", "error_type": "rate_limited"}, retry_after="3600")
    with pytest.raises(RateLimited) as caught:
        ask("generate", "e2e", "x")
    assert caught.value.retry_after == 3600
    assert len(fake.received) == 1


@pytest.mark.parametrize("status", [400, 404, 422, 500, 504])
def test_other_refusals_are_final(fake, ask, status):
    fake.will_answer(status, {"error": "no"}, retry_after="0")
    with pytest.raises(ApiError):
        ask("generate", "e2e", "x")
    assert len(fake.received) == 1


def test_what_must_not_happen_twice_is_not_repeated_after_a_503(fake, ask):
    for _ in range(3):
        fake.will_answer(503, {"error": "draining", "error_type": "unavailable"}, retry_after="0")
    with pytest.raises(Unavailable):
        ask("delete", "e2e")
    with pytest.raises(Unavailable):
        ask("upload", "e2e", b"x", if_match="ab")
    with pytest.raises(Unavailable):
        ask("ready")
    assert len(fake.received) == 3


def test_without_a_named_time_each_wait_is_twice_the_last():
    error = Overloaded("full", 429, "overloaded")
    assert [Retries().seconds(error, attempt, repeatable=True) for attempt in range(4)] == [0.5, 1.0, 2.0, None]


def test_a_retry_after_may_be_a_date():
    soon = seconds_to_wait(format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True))
    assert 15 < soon <= 20
    assert seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds_to_wait("soon") is None
    assert seconds_to_wait(f"Wed, 21 Oct {10**30} 07:28:00 GMT") is None
