"""Evaluation against a hand-written server: what it asks, in what order, and what it makes of the answers."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clients.client import AsyncClient
from clients.errors import NotFound
from training.evaluate import Answers, TestSet, ask, by_turns, score
from training.examples import Example

COLOURS = TestSet("colours", [Example("red", ("a red one", "red")), Example("blue", ("a blue one",))], "e2e")
PLACES = TestSet(
    "places", [Example("here", ("Café, here",)), Example("there", ("t",)), Example("up", ("u",))], "webnlg"
)


class Parrot:
    """Answers ` a <inputs> one` from the given version, and notes who asked for what. The first `num_refusals` times
    that it is asked it has no room."""

    def __init__(
        self,
        versions: dict[str, list[int]],
        num_refusals: int = 0,
        refuse: Callable[[dict[str, Any]], Response | None] = lambda body: None,
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._versions = versions
        self._num_refusals = num_refusals
        self._refuse = refuse
        self.app = Starlette(routes=[Route("/generate", self._generate, methods=["POST"])])

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        if self._num_refusals:
            self._num_refusals -= 1
            return JSONResponse({"error": "busy", "error_type": "overloaded"}, 429, {"retry-after": "0"})
        self.asked.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0)  # lets the others in
        self._at_once -= 1
        if refusal := self._refuse(body):
            return refusal
        task_id = body["task_id"]
        if task_id not in self._versions:
            return JSONResponse({"error": f"no task {task_id!r}", "error_type": "not_found"}, 404)
        versions = self._versions[task_id]
        version = versions.pop(0) if len(versions) > 1 else versions[0]
        text = f" a {body['inputs']} one"
        return JSONResponse({"generated_text": text, "task_id": task_id, "version": version})

    def answers(self, *test_sets: TestSet, concurrency: int = 4, **parameters: Any) -> list[Answers]:
        async def run() -> list[Answers]:
            async with AsyncClient("http://parrot", transport=httpx.ASGITransport(app=self.app)) as client:
                return await ask(client, test_sets, concurrency, parameters)

        return asyncio.run(run())


def test_every_input_is_asked_once_and_the_tasks_are_mixed() -> None:
    parrot = Parrot({"colours": [3], "places": [1]})
    answers = parrot.answers(COLOURS, PLACES, concurrency=1)
    order = [(body["task_id"], body["inputs"]) for body in parrot.asked]
    assert order == [("colours", "red"), ("places", "here"), ("colours", "blue"), ("places", "there"), ("places", "up")]
    assert answers[0] == Answers(("a red one", "a blue one"), 3)
    assert answers[1].texts == ("a here one", "a there one", "a up one")


def test_no_more_requests_run_at_once_than_allowed() -> None:
    parrot = Parrot({"colours": [1], "places": [1]})
    parrot.answers(COLOURS, PLACES, concurrency=2)
    assert parrot.most_at_once <= 2


def test_parameters_are_sent_with_every_request() -> None:
    parrot = Parrot({"colours": [1]})
    parrot.answers(COLOURS, num_beams=5, max_new_tokens=60)
    sent = {"num_beams": 5, "max_new_tokens": 60, "details": True}
    assert [body["parameters"] for body in parrot.asked] == [sent] * 2


def test_a_refusal_ends_the_evaluation_with_the_servers_own_error() -> None:
    with pytest.raises(NotFound, match="no task 'colours'"):
        Parrot({}).answers(COLOURS)


def test_an_input_that_fails_is_told_and_the_others_are_kept() -> None:
    def fail_blue(body: dict[str, Any]) -> Response | None:
        error = {"error": "too long", "error_type": "validation"}
        return JSONResponse(error, 422) if body["inputs"] == "blue" else None

    parrot = Parrot({"colours": [2]}, refuse=fail_blue)
    (answers,) = parrot.answers(COLOURS)
    assert (answers.texts, answers.version) == (("a red one", ""), 2)
    assert list(answers.failures) == [1]
    assert "too long" in answers.failures[1]
    report = score(COLOURS, answers)
    assert (report.num_inputs, report.num_failed) == (2, 1)


def test_a_server_that_is_full_is_asked_again_until_it_has_room() -> None:
    parrot = Parrot({"colours": [1], "places": [1]}, num_refusals=100)
    answers = parrot.answers(COLOURS, PLACES)
    assert [answer.texts for answer in answers] == [
        ("a red one", "a blue one"),
        ("a here one", "a there one", "a up one"),
    ]
    assert len(parrot.asked) == 5


def test_answers_of_two_versions_are_told_apart_from_those_of_one() -> None:
    (answers,) = Parrot({"colours": [1, 2]}).answers(COLOURS)
    assert answers.version is None


def test_turns_go_on_when_a_task_runs_out() -> None:
    assert by_turns([COLOURS, PLACES]) == [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]


def test_a_report_scores_over_all_references() -> None:
    report = score(COLOURS, Answers(("red", "a blue one"), 3))
    assert (report.task_id, report.version, report.num_inputs, report.num_references) == ("colours", 3, 2, 3)
    assert report.rouge_l == pytest.approx(1.0), "each answer is one of its references"
    assert report.to_json()["scoring"] == "e2e"
    assert "tok:13a" in report.bleu_signature


def test_webnlgs_scoring_is_chosen_by_the_test_set() -> None:
    report = score(PLACES, Answers(("cafe , here", "t", "u"), 1))
    assert "tok:none" in report.bleu_signature
    assert report.rouge_l < 1, "ROUGE-L sees the accent"
