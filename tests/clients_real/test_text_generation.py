"""The package `text_generation`."""

import pytest
from text_generation import Client

from tests.clients_real.conftest import ODD_TEXT

PROMPT = "name : Blue Spice"


@pytest.fixture(scope="module")
def client(url):
    return Client(f"{url}/tasks/e2e", timeout=60)


def test_an_answer_has_our_text_and_its_details(client, expected):
    answer = client.generate(PROMPT, max_new_tokens=12)
    assert answer.generated_text == expected["generated_text"]
    assert answer.details.generated_tokens == expected["details"]["generated_tokens"]


def test_a_stream_is_the_same_text(client, expected):
    events = list(client.generate_stream(PROMPT, max_new_tokens=12))
    assert "".join(event.token.text for event in events) == expected["generated_text"]
    assert events[-1].generated_text == expected["generated_text"]


def test_odd_text_comes_through_a_stream(client):
    *_, last = client.generate_stream(ODD_TEXT, max_new_tokens=2, return_full_text=True)
    assert last.generated_text.startswith(ODD_TEXT)


def test_a_hot_stream_is_the_whole_answer(client):
    asked = {"max_new_tokens": 60, "do_sample": True, "temperature": 5.0, "seed": 7}
    whole = client.generate(ODD_TEXT, **asked).generated_text
    assert "".join(event.token.text for event in client.generate_stream(ODD_TEXT, **asked)) == whole
