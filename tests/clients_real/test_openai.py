"""The package `openai`, sync and async."""

import asyncio

import openai
import pytest

from tests.clients_real.conftest import ODD_TEXT

PROMPT = "name : Blue Spice"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_is_the_text_of_our_own_route(client, expected):
    answer = client.completions.create(model="e2e", prompt=PROMPT, max_tokens=12, temperature=0)
    assert answer.choices[0].text == expected["generated_text"]
    assert answer.usage.completion_tokens == expected["details"]["generated_tokens"]


def test_a_stream_tells_its_usage(client, expected):
    options = {"include_usage": True}
    *chunks, last = client.completions.create(
        model="e2e", prompt=PROMPT, max_tokens=12, temperature=0, stream=True, stream_options=options
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected["generated_text"]
    assert last.usage.completion_tokens == expected["details"]["generated_tokens"]


def test_odd_text_comes_through_a_stream(client):
    chunks = list(client.completions.create(model="e2e", prompt=ODD_TEXT, echo=True, max_tokens=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks).startswith(ODD_TEXT)


def test_a_hot_stream_is_the_whole_answer(client):
    asked = {"model": "base", "prompt": ODD_TEXT, "temperature": 5, "seed": 7, "max_tokens": 60}
    whole = client.completions.create(**asked).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == whole


def test_echo_and_logprobs_cover_the_prompt(client):
    answer = client.completions.create(model="e2e", prompt=PROMPT, max_tokens=1, echo=True, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == answer.usage.total_tokens
    assert answer.choices[0].text.startswith(PROMPT)


def test_prompts_may_be_several_and_token_ids(client):
    several = client.completions.create(model="e2e", prompt=["a", "b"], n=2, seed=1, max_tokens=4)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    ids = client.completions.create(model="e2e", prompt=[[10, 11], [12]], max_tokens=4)
    assert len(ids.choices) == 2


def test_a_chat_by_the_tasks_template(client):
    messages = [{"role": "user", "content": PROMPT}]
    answer = client.chat.completions.create(model="e2e", messages=messages, temperature=0)
    chunks = client.chat.completions.create(model="e2e", messages=messages, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == answer.choices[0].message.content


def test_models_are_listed_and_found(client):
    assert "e2e" in [model.id for model in client.models.list()]
    assert client.models.retrieve("e2e").id == "e2e"


def test_an_unknown_model_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="nobody", prompt="a")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_a_wrong_key_and_a_limit_are_their_errors(guarded):
    url, key = guarded
    with openai.OpenAI(base_url=f"{url}/v1", api_key="pp_wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.models.list()
        assert raised.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        for _ in range(2):
            client.completions.create(model="base", prompt="a", max_tokens=1)
        with pytest.raises(openai.RateLimitError) as limited:
            client.completions.create(model="base", prompt="a", max_tokens=1)
        assert limited.value.code == "rate_limit_exceeded"


def test_the_async_client_does_the_same(url, expected):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            asked = {"model": "e2e", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
            whole = await client.completions.create(**asked)
            pieces = [chunk.choices[0].text async for chunk in await client.completions.create(**asked, stream=True)]
            return whole.choices[0].text, "".join(pieces)

    assert asyncio.run(ask()) == (expected["generated_text"], expected["generated_text"])
