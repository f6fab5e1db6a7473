"""The score route, on a tiny real model, compared with transformers; the tokens' places on the echo engine."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from transformers import GPT2LMHeadModel

from tests.server.conftest import Running


def score(server: Running, inputs: str | None, continuations: list[str], **fields: Any) -> list[dict[str, Any]]:
    answer = server.http.post("/score", json={"inputs": inputs, "continuations": continuations, **fields})
    assert answer.status_code == 200, answer.text
    scores: list[dict[str, Any]] = answer.json()["scores"]
    return scores


@torch.no_grad()
def expected(model: GPT2LMHeadModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
    own = logits.log_softmax(-1)[range(len(continuation)), continuation]
    return own.sum().item(), logits.argmax(-1).tolist() == continuation


def test_scores_are_those_of_transformers(real: Running, model: GPT2LMHeadModel) -> None:
    greedy = real.generate("the sea", max_new_tokens=3)["generated_text"]
    continuations = [" is", " was blue", greedy or "x", "é", "!"]
    for each, text in zip(score(real, "the sea", continuations), continuations, strict=True):
        logprob, is_greedy = expected(model, list(b"the sea"), list(text.encode()))
        assert each["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert (each["num_tokens"], each["is_greedy"]) == (len(text.encode()), is_greedy)
        assert each["tokens"] is None


def test_the_sums_are_those_of_the_tokens(real: Running) -> None:
    (each,) = score(real, "the sea", [" is"], details=True)
    assert [token["text"] for token in each["tokens"]] == [" ", "i", "s"]
    assert each["logprob"] == pytest.approx(sum(token["logprob"] for token in each["tokens"]))


@pytest.mark.parametrize("inputs", ["", None])
def test_without_inputs_the_end_of_text_token_comes_first(
    real: Running, model: GPT2LMHeadModel, inputs: str | None
) -> None:
    (each,) = score(real, inputs, ["ab"])
    assert each["logprob"] == pytest.approx(expected(model, [256], list(b"ab"))[0], abs=1e-4)


def test_spaces_at_the_inputs_end_are_the_continuations(server: Running) -> None:
    (each,) = score(server, "ab ", ["c"], details=True)
    assert [token["text"] for token in each["tokens"]] == [" ", "c"]


def test_a_continuation_that_the_inputs_last_token_would_swallow_is_scored_by_its_own(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging = json.loads(server.services.tokenizer._backend.to_str())
    merging["model"]["merges"] = [["a", "b"]]
    merging["model"]["vocab"]["ab"] = merging["model"]["vocab"].pop("z")
    monkeypatch.setattr(server.services.tokenizer, "_backend", Backend.from_str(json.dumps(merging)))
    swallowed, other = score(server, "xa", ["b", "bb"], details=True)
    assert [token["text"] for token in swallowed["tokens"]] == ["b"]
    assert [token["text"] for token in other["tokens"]] == ["b"]  # after "x", "ab": as lm-evaluation-harness has it
    assert (swallowed["num_tokens"], other["num_tokens"]) == (1, 1)


def test_a_tasks_template_and_version_are_used(server: Running) -> None:
    server.upload("judge")
    server.http.patch("/tasks/judge", json={"config": {"prompt_template": "{inputs}:"}})
    answer = server.http.post("/score", json={"task_id": "judge", "inputs": "ab", "continuations": ["c", "de"]})
    assert (answer.json()["task_id"], answer.json()["version"]) == ("judge", 1)
    assert answer.headers["x-prompt-tokens"] == str(len("ab:c") + len("ab:de"))


def test_what_ends_a_template_is_read_and_not_scored(server: Running) -> None:
    server.upload("judge")
    server.http.patch("/tasks/judge", json={"config": {"prompt_template": "{inputs} =\n"}})
    for inputs in ("ab", "ab ", ""):
        (each,) = score(server, inputs, ["ab ="], task_id="judge", details=True)
        assert "".join(token["text"] for token in each["tokens"]) == "ab ="
    server.http.patch("/tasks/judge", json={"config": {"prompt_template": "= {inputs}"}})
    (each,) = score(server, "ab ", ["c"], task_id="judge", details=True)
    assert [token["text"] for token in each["tokens"]] == [" ", "c"]


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {"task_id": "nobody"}),
        (422, {"parameters": {"adapter_id": "judge"}}),
        (422, {"continuations": []}),
        (422, {"continuations": [""]}),
        (422, {"continuations": ["a"] * 65}),
        (422, {"continuations": "a"}),
        (422, {"continuations": ["a" * 200]}),
    ],
)
def test_what_cannot_be_scored_is_refused(server: Running, status: int, fields: dict[str, Any]) -> None:
    answer = server.http.post("/score", json={"inputs": "ab", "continuations": ["c"], **fields})
    assert answer.status_code == status
