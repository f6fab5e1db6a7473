"""The package `huggingface_hub`: `InferenceClient.text_generation`."""

import json

import pytest
from huggingface_hub import InferenceClient

from tests.clients_real.conftest import ODD_TEXT

PROMPT = "name : Blue Spice"


@pytest.fixture(scope="module", params=["adapter_id", "task URL"])
def ask(request, url):
    """Asks for e2e, named in either way."""
    if request.param == "adapter_id":
        client = InferenceClient(url, timeout=60)
        return lambda prompt, **fields: client.text_generation(prompt, adapter_id="e2e", **fields)
    return InferenceClient(f"{url}/tasks/e2e", timeout=60).text_generation


def test_an_answer_is_our_text(ask, expected):
    assert ask(PROMPT, max_new_tokens=12) == expected["generated_text"]


def test_details_tell_the_tokens(ask, expected):
    answer = ask(PROMPT, max_new_tokens=12, details=True)
    assert answer.generated_text == expected["generated_text"]
    assert [token.id for token in answer.details.tokens] == [each["id"] for each in expected["details"]["tokens"]]


def test_a_stream_is_the_same_text(ask, expected):
    events = list(ask(PROMPT, max_new_tokens=12, stream=True, details=True))
    assert "".join(event.token.text for event in events) == expected["generated_text"] == events[-1].generated_text
    assert events[-1].details.generated_tokens == expected["details"]["generated_tokens"]


def test_odd_text_comes_through_a_stream(ask):
    *_, last = ask(ODD_TEXT, max_new_tokens=2, stream=True, details=True, return_full_text=True)
    assert last.generated_text.startswith(ODD_TEXT)


def test_a_hot_stream_is_the_whole_answer(ask):
    asked = {"max_new_tokens": 60, "do_sample": True, "temperature": 5.0, "seed": 7}
    assert "".join(ask(ODD_TEXT, stream=True, **asked)) == ask(ODD_TEXT, **asked)


def test_a_grammar_is_followed(ask):
    assert ask(PROMPT, grammar={"type": "regex", "value": "[0-9]{3}"}, max_new_tokens=8).isdigit()
    name = {"type": "string", "maxLength": 9}
    schema = {"type": "object", "properties": {"name": name}, "required": ["name"], "additionalProperties": False}
    text = ask(PROMPT, grammar={"type": "json", "value": schema}, max_new_tokens=40)
    assert json.loads(text).keys() == {"name"}
