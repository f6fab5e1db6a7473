"""`map` over many inputs: order, how many at a time, failures, leaving early; every test runs with both clients."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

import httpx
import pytest

from clients.client import AsyncClient, Client
from clients.connections import MAX_IDLE
from clients.errors import Overloaded, ValidationFailed
from clients.order import in_order

URL = "http://echo"


class Echo(httpx.AsyncBaseTransport):
    """Answers each input with itself, later ones of ten sooner. It notes what it was asked, how many requests it held
    at once, and how many were taken back. `not this one` is refused; `never` is held, and `in company` until there is
    a `never`; more than `room` at once are told to come again, and `in a full house` is held until one was."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.held = self.most_held = self.num_taken_back = 0
        self.room = 1000
        self.retry_after = "0"
        self.has_company, self.has_refused = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        if self.held >= self.room:
            self.has_refused.set()
            busy = {"error": "busy", "error_type": "overloaded"}
            return httpx.Response(429, json=busy, headers={"retry-after": self.retry_after})
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        try:
            for _ in range(10 - len(self.asked) % 10):
                await asyncio.sleep(0)
            if body["inputs"] == "never":
                self.has_company.set()
                await asyncio.Event().wait()
            elif body["inputs"] == "in company":
                await self.has_company.wait()
            elif body["inputs"] == "in a full house":
                await self.has_refused.wait()
        except asyncio.CancelledError:
            self.num_taken_back += 1
            raise
        finally:
            self.held -= 1
        return self.answer(body["task_id"], body["inputs"])

    def answer(self, task: str, text: str) -> httpx.Response:
        if text == "not this one":
            return httpx.Response(422, json={"error": "no", "error_type": "validation"})
        return httpx.Response(200, json={"generated_text": text, "task_id": task, "version": 1})


@pytest.fixture
def echo() -> Echo:
    return Echo()


Map = Callable[..., Iterator[Any]]


@pytest.fixture(params=["sync", "async"])
def ask_all(request: pytest.FixtureRequest, echo: Echo) -> Map:
    """`map` or another method of either client, as an iterator; closing it closes the client's."""

    def ask_sync(*args: Any, method: str = "map", **kwargs: Any) -> Iterator[Any]:
        with (
            Client(URL, transport=echo) as client,
            contextlib.closing(getattr(client, method)(*args, **kwargs)) as given,
        ):
            yield from given

    def ask_async(*args: Any, method: str = "map", **kwargs: Any) -> Iterator[Any]:
        with asyncio.Runner() as runner:
            client = AsyncClient(URL, transport=echo)
            answers = getattr(client, method)(*args, **kwargs)
            try:
                while (answer := runner.run(following(answers))) is not None:
                    yield answer
            finally:
                runner.run(answers.aclose())
                runner.run(client.close())

    return ask_sync if request.param == "sync" else ask_async


async def following(answers: Any) -> Any:
    return await anext(answers, None)


def texts(answers: Iterable[Any]) -> list[str]:
    return [answer.generated_text for answer in answers]


def test_answers_come_in_the_inputs_order_whichever_is_ready_first(echo, ask_all):
    inputs = [str(n) for n in range(100)]
    assert texts(ask_all("e2e", inputs, concurrency=8, max_new_tokens=4)) == inputs
    assert echo.asked[0] == {"task_id": "e2e", "inputs": "0", "parameters": {"max_new_tokens": 4}}
    assert 1 < echo.most_held <= 8


def test_each_input_may_have_a_task_of_its_own(ask_all):
    answers = ask_all(["poet", "clerk", None], ["the sea", "dear sir", "once"])
    assert [(answer.task_id, answer.generated_text) for answer in answers] == [
        ("poet", "the sea"),
        ("clerk", "dear sir"),
        (None, "once"),
    ]


def test_a_mix_is_one_task_for_all_inputs(echo, ask_all):
    mix = {"mix": {"poet": 0.7, "clerk": 0.3}}
    assert len(list(ask_all(mix, ["the sea", "dear sir"]))) == 2
    assert [asked["task_id"] for asked in echo.asked] == [mix, mix]


def test_a_task_too_few_is_not_passed_over(ask_all):
    with pytest.raises(ValueError, match="longer"):
        list(ask_all(["poet"], ["the sea", "dear sir"]))


def test_inputs_without_an_end_are_read_only_as_far_as_they_are_needed(echo, ask_all):
    taken = 0

    def inputs() -> Iterator[str]:
        nonlocal taken
        for taken in count(1):
            yield str(taken)

    answers = ask_all("e2e", inputs(), concurrency=4)
    assert texts(islice(answers, 50)) == [str(n) for n in range(1, 51)]
    assert taken < 50 + 5 * 4
    answers.close()


def test_the_first_error_raises_in_its_place_and_ends_the_rest(echo, ask_all):
    answers = ask_all("e2e", ["a", "b", "not this one", *map(str, range(1000))], concurrency=2)
    assert texts(islice(answers, 2)) == ["a", "b"]
    with pytest.raises(ValidationFailed):
        next(answers)
    assert len(echo.asked) < 20


def test_trying_gives_an_error_in_its_inputs_place_and_goes_on(echo, ask_all):
    outcomes = list(ask_all("e2e", ["a", "not this one", "\ud800", "b"], method="try_map"))
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Generation",
        "ValidationFailed",
        "InvalidRequest",
        "Generation",
    ]
    assert len(echo.asked) == 3


def test_more_at_once_than_the_server_has_room_for_is_slower_and_no_failure(echo, ask_all):
    echo.room = 2
    inputs = ["in a full house", "in a full house", *map(str, range(100))]
    assert texts(ask_all("e2e", inputs, concurrency=32)) == inputs
    assert echo.most_held == 2
    assert len(echo.asked) > len(inputs)  # some were refused, and asked again


def test_a_gateway_that_names_no_wait_is_not_asked_without_end(echo, ask_all):
    echo.room = 1
    assert len(list(ask_all("e2e", ["in a full house", "x"], concurrency=2))) == 2
    assert len(echo.asked) < 50


def test_a_wait_that_is_too_long_is_a_failure(echo, ask_all):
    echo.room, echo.retry_after = 0, "3600"
    with pytest.raises(Overloaded):
        list(ask_all("e2e", ["a"]))


def test_leaving_early_takes_back_what_is_in_flight(echo, ask_all):
    answers = ask_all("e2e", ["in company", *["never"] * 100], concurrency=16)
    next(answers)
    answers.close()
    assert echo.held == 0
    assert 1 <= echo.num_taken_back <= 16


def test_an_error_of_the_inputs_own_is_the_callers(ask_all):
    def inputs() -> Iterator[str]:
        yield "a"
        raise KeyError("the file is broken")

    with pytest.raises(KeyError, match="broken"):
        list(ask_all("e2e", inputs()))


def test_nothing_in_gives_nothing_out(ask_all):
    assert list(ask_all("e2e", [])) == []


def test_one_text_is_not_taken_for_its_characters(ask_all):
    with pytest.raises(TypeError, match="iterable of texts"):
        list(ask_all("e2e", "the sea"))


def test_a_concurrency_below_one_is_refused(ask_all):
    with pytest.raises(ValueError, match="expected 1 or more"):
        list(ask_all("e2e", ["a"], concurrency=0))


def test_progress_is_shown_on_a_terminal_only(ask_all, capsys, monkeypatch):
    list(ask_all("e2e", ["a", "b"], progress=True))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    list(ask_all("e2e", ["a", "b"], progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


def test_a_future_that_is_done_is_handed_over_before_more_are_started():
    loop = asyncio.new_event_loop()
    started = []

    def start() -> Iterator[asyncio.Future[int]]:
        for number in range(5):
            future = loop.create_future()
            if number != 2:
                future.set_result(number)
            started.append(number)
            yield future

    given = in_order(start(), max_ahead=3)
    next(given), next(given)
    assert started == [0, 1]
    waited_for = next(given)
    assert (started, waited_for.done()) == ([0, 1, 2, 3, 4], False)
    given.close()
    assert waited_for.cancelled()
    loop.close()


def test_a_callers_own_transport_stays_open_while_it_carries_others():
    class Closable(Echo):
        num_closed = 0

        async def aclose(self) -> None:
            self.num_closed += 1

    transport = Closable()

    async def ask_many() -> int:
        async with AsyncClient(URL, transport=transport) as client:
            answers = [client.generate("e2e", str(number)) for number in range(2 * MAX_IDLE)]
            await asyncio.gather(*answers)
            return transport.num_closed

    assert asyncio.run(ask_many()) == 0


def test_of_a_burst_so_many_connections_stay_open(fake):
    for _ in range(2 * MAX_IDLE):
        fake.will_answer(200, {"generated_text": ""})

    async def ask_many() -> int:
        async with AsyncClient(fake.url) as client:
            await asyncio.gather(*(client.generate("e2e", str(number)) for number in range(2 * MAX_IDLE)))
            return len(client._carrier._connections._all)

    assert asyncio.run(ask_many()) <= MAX_IDLE


def test_many_requests_at_once_reuse_their_connections(fake):
    for _ in range(200):
        fake.will_answer(200, {"generated_text": ""})
    with Client(fake.url) as client:
        assert len(list(client.map("e2e", map(str, range(200)), concurrency=30))) == 200
    assert len({received.port for received in fake.received}) <= 30
