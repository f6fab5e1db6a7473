"""LangChain's wrapper `langchain_openai.OpenAI`."""

from langchain_openai import OpenAI

PROMPT = "name : Blue Spice"


def test_it_brings_our_text_whole_streamed_and_in_a_batch(url, expected):
    model = OpenAI(base_url=f"{url}/v1", api_key="none", model="e2e", temperature=0, max_tokens=12)
    assert model.invoke(PROMPT) == expected["generated_text"]
    assert "".join(model.stream(PROMPT)) == expected["generated_text"]
    assert model.batch([PROMPT, PROMPT]) == [expected["generated_text"]] * 2
