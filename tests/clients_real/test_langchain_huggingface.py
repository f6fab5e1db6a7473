"""LangChain's wrapper of text-generation-inference, `langchain_huggingface.HuggingFaceEndpoint`."""

from langchain_huggingface import HuggingFaceEndpoint

PROMPT = "name : Blue Spice"


def test_it_brings_our_text_whole_and_streamed(url, expected):
    model = HuggingFaceEndpoint(endpoint_url=f"{url}/tasks/e2e", max_new_tokens=12, do_sample=False)
    # The wrapper always sends its own temperature and top_p, with which it would sample.
    greedy = {"top_k": 1, "top_p": None, "typical_p": None, "temperature": None}
    assert model.invoke(PROMPT, **greedy) == expected["generated_text"]
    assert "".join(model.stream(PROMPT, **greedy)) == expected["generated_text"]
