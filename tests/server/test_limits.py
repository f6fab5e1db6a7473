"""How much a tenant may have: requests, tokens and uploads a minute, rows in the queue."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.types import Message

from batching.types import RequestError
from prefix_store.tenants import Principal, Scope, Tenant, TenantLimits
from server.access import LOCAL
from server.errors import Overloaded, RateLimited, Unavailable
from server.file_answer import FileAnswer
from server.file_room import FileRoom
from server.limits import Limits
from server.room import Room
from tests.server.conftest import Guarded, Running, prefix_file
from tests.server.fakes import EchoEngine, Gate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def principal(name: str = "acme", **limits: int | None) -> Principal:
    return Principal(
        tenant=name,
        scopes=frozenset(Scope),
        key_id="k",
        weight=1.0,
        limits=TenantLimits(**limits),  # type: ignore[arg-type]
    )


def test_requests_beyond_the_minutes_are_told_when_to_come_again() -> None:
    clock = Clock()
    limits, acme = Limits(clock), principal(requests_per_minute=2)
    limits.admit(acme)
    limits.admit(acme)
    with pytest.raises(RateLimited, match="2 requests a minute") as refused:
        limits.admit(acme)
    assert refused.value.retry_after == 30
    clock.now += 30
    limits.admit(acme)
    limits.admit(principal("other", requests_per_minute=2))


def test_an_idle_hour_saves_no_more_than_a_minute_up() -> None:
    clock = Clock()
    limits, acme = Limits(clock), principal(requests_per_minute=2)
    limits.admit(acme)
    clock.now += 3600
    limits.admit(acme)
    limits.admit(acme)
    with pytest.raises(RateLimited):
        limits.admit(acme)


def test_generated_tokens_cost_twice_and_a_debt_is_paid_by_time() -> None:
    clock = Clock()
    limits, acme = Limits(clock), principal(tokens_per_minute=60)
    limits.admit(acme)
    limits.charge(acme, num_prompt_tokens=20, num_generated_tokens=40)  # 100 of 60
    with pytest.raises(RateLimited) as refused:
        limits.admit(acme)
    assert refused.value.retry_after == 41
    clock.now += 41
    limits.admit(acme)


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limits, acme = Limits(clock), principal(requests_per_minute=1)
    limits.admit(acme)
    for _ in range(5):
        with pytest.raises(RateLimited):
            limits.admit(acme)
    clock.now += 60
    limits.admit(acme)


def test_a_limit_of_nothing_is_never_and_a_changed_one_holds_at_once() -> None:
    limits = Limits(Clock())
    with pytest.raises(RateLimited) as refused:
        limits.admit(principal(requests_per_minute=0))
    assert refused.value.retry_after == 60
    limits.admit(principal(requests_per_minute=1))


def test_what_old_limits_let_in_is_charged_to_the_new_one() -> None:
    clock = Clock()
    limits, before, now = Limits(clock), principal(tokens_per_minute=1_000), principal(tokens_per_minute=10)
    limits.admit(before)
    limits.admit(now)
    limits.charge(before, num_prompt_tokens=10, num_generated_tokens=0)  # its row ends
    with pytest.raises(RateLimited):
        limits.admit(now)


def test_what_is_used_without_a_limit_is_no_debt_under_the_next_one() -> None:
    limits, limited, free = Limits(Clock()), principal(tokens_per_minute=10), principal()
    limits.admit(limited)
    limits.admit(free)
    limits.charge(free, num_prompt_tokens=1_000, num_generated_tokens=0)
    limits.admit(limited)


def test_uploads_come_in_bursts_and_the_local_tenant_has_no_limit() -> None:
    clock = Clock()
    limits, acme = Limits(clock), principal(uploads_per_minute=60, upload_burst=3)
    for _ in range(3):
        limits.admit_upload(acme)
    with pytest.raises(RateLimited):
        limits.admit_upload(acme)
    clock.now += 1
    limits.admit_upload(acme)
    for _ in range(1000):
        limits.admit_upload(LOCAL)
        limits.admit(LOCAL)


def test_who_may_upload_nothing_is_told_to_wait_a_minute() -> None:
    with pytest.raises(RateLimited) as refused:
        Limits(Clock()).admit_upload(principal(uploads_per_minute=60, upload_burst=0))
    assert refused.value.retry_after == 60


def test_a_tenants_own_queue_is_bounded_by_twice_the_slots_or_its_limit() -> None:
    room = Room(num_slots=4, max_rows=1000)
    room.take("acme", 12)
    with pytest.raises(RateLimited):
        room.check("acme", 1, None)
    room.check("acme", 1, 9)
    room.check("other", 12, None)
    room.take("other", 1)
    with pytest.raises(RateLimited):
        room.check("other", 4, 0)


def test_a_request_of_more_rows_than_its_tenant_may_ever_have_is_not_told_to_come_again() -> None:
    with pytest.raises(RequestError, match="may have 12 at once"):
        Room(num_slots=4, max_rows=1000).check("acme", 13, None)
    with pytest.raises(RequestError, match="may have 4 at once"):
        Room(num_slots=4, max_rows=1000).check("acme", 5, 0)
    with pytest.raises(RequestError, match="may have 10 at once"):
        Room(num_slots=4, max_rows=10).check("acme", 11, None)


def test_full_queues_of_others_do_not_keep_a_tenant_out() -> None:
    room = Room(num_slots=4, max_rows=20)
    room.take("flood", 10)
    room.take("other flood", 10)
    with pytest.raises(Overloaded):
        room.check("other flood", 1, None)
    room.check("quiet", 6, None)
    with pytest.raises(Overloaded):
        room.check("quiet", 7, None)


def test_what_was_given_back_is_there_again() -> None:
    room = Room(num_slots=1, max_rows=2)
    room.take("acme", 2)
    room.give_back("acme", 2)
    assert room.num_rows == 0
    room.check("acme", 2, None)


def test_a_tenant_over_its_limit_is_429_before_its_prompt_is_read(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(
        Tenant(name="few", limits=TenantLimits(requests_per_minute=1)),
        Tenant(name="short", limits=TenantLimits(tokens_per_minute=5)),
    )
    for tenant, num_answered in (("few", 1), ("short", 1)):
        for _ in range(num_answered):
            assert house.ask(f"{tenant}/generate", "POST", "/generate", json={"inputs": "abcd"}).status_code == 200
        refused = house.ask(f"{tenant}/generate", "POST", "/generate", content=b"not even JSON")
        assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limited")
        assert int(refused.headers["retry-after"]) >= 1


def test_too_many_uploads_are_429(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="eager", limits=TenantLimits(uploads_per_minute=1, upload_burst=2)))
    answers = [house.ask("eager/tasks", "PUT", "/tasks/t", content=prefix_file(3, i / 10)) for i in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 429]
    assert answers[-1].json()["error_type"] == "rate_limited"


def test_uploads_beyond_what_fits_in_memory_are_503_before_their_bodies_are_read(start: Callable[..., Running]) -> None:
    body = prefix_file()
    server = start(max_open_upload_bytes=2 * len(body) - 1)

    def begin(task_id: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port), 20)
        connection.sendall(f"PUT /tasks/{task_id} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode())
        return connection

    with begin("one") as first:
        while server.services.file_room.num_bytes == 0:
            pass
        with begin("two") as second:
            head = second.recv(65536).decode().lower()
        assert head.startswith("http/1.1 503 ")
        assert "retry-after: 1\r\n" in head
        refused = server.http.put("/tasks/two", content=body)
        assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
        first.sendall(body)
        assert first.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert server.http.put("/tasks/two", content=body).status_code == 201
    with begin("one"):  # and a client that leaves gives its room back
        while server.services.file_room.num_bytes == 0:
            pass
    while server.services.file_room.num_bytes:
        pass


def test_an_upload_that_is_alone_gets_in_however_large_it_is() -> None:
    room = FileRoom(max_bytes=10)
    with room.taken("acme", 11):
        with pytest.raises(Unavailable, match="there is room for 10"), room.taken("other", 1):
            pass
        assert room.num_bytes == 11
    assert room.num_bytes == 0


def test_uploads_of_one_tenant_leave_room_for_others() -> None:
    room = FileRoom(max_bytes=16)
    with room.taken("flood", 4), room.taken("flood", 4):
        with pytest.raises(Unavailable, match="8 of them this tenant's"), room.taken("flood", 1):
            pass
        with room.taken("second", 4):
            with pytest.raises(Unavailable, match="0 of them this tenant's"), room.taken("third", 3):
                pass
            with room.taken("third", 2):
                assert room.num_bytes == 14
    assert room.num_bytes == 0


class Reader:
    """A connection whose reader takes so many pieces, and more when it is told to."""

    def __init__(self, num_pieces: int) -> None:
        self.taken: list[bytes] = []
        self.is_stuck = asyncio.Event()
        self._turns = asyncio.Semaphore(num_pieces)

    async def take(self, answer: FileAnswer) -> None:
        await answer({"type": "http"}, self._receive, self._send)

    def go_on(self, num_pieces: int) -> None:
        for _ in range(num_pieces):
            self._turns.release()

    async def _send(self, message: Message) -> None:
        if self._turns.locked():
            self.is_stuck.set()
        await self._turns.acquire()
        self.taken.append(message.get("body", b""))

    async def _receive(self) -> Message:
        raise AssertionError("it has no body to read")


def test_a_file_that_is_read_back_slowly_takes_of_the_room_until_it_is_read() -> None:
    async def main() -> None:
        room, body, reader = FileRoom(max_bytes=1 << 20), bytes(range(256)) * 800, Reader(num_pieces=2)
        answer = FileAnswer(body, "application/octet-stream", {}, room, "acme")
        sending = asyncio.create_task(reader.take(answer))
        await reader.is_stuck.wait()
        assert room.num_bytes == len(body)
        assert len(b"".join(reader.taken)) < len(body)
        reader.go_on(10)
        await sending
        assert room.num_bytes == 0
        assert b"".join(reader.taken) == body

    asyncio.run(main())


def test_a_file_that_there_is_no_room_for_is_not_begun() -> None:
    room, reader = FileRoom(max_bytes=10), Reader(num_pieces=9)
    answer = FileAnswer(b"123", "text/plain", {}, room, "acme")
    with room.taken("other", 9), pytest.raises(Unavailable):
        asyncio.run(reader.take(answer))
    assert reader.taken == []


def test_a_search_is_charged_for_each_of_its_beams(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="broad", limits=TenantLimits(tokens_per_minute=50)))
    search = {"inputs": "abcdef", "parameters": {"num_beams": 4, "max_new_tokens": 6}}  # the echo has six tokens
    assert house.ask("broad/generate", "POST", "/generate", json=search).status_code == 200
    refused = house.ask("broad/generate", "POST", "/generate", json=search)
    assert refused.status_code == 429, "6 tokens by 4 beams at twice the price are 48, and the prompt's 6 more than 50"
    assert 0 < int(refused.headers["retry-after"]) <= 60


def test_reading_and_changing_tasks_are_requests_too(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="busy", limits=TenantLimits(requests_per_minute=3)), Tenant(name="other"))
    assert house.ask("busy/tasks", "PUT", "/tasks/t", content=prefix_file()).status_code == 201  # has its own limit
    asked = [("GET", "/tasks"), ("GET", "/tasks/t/prefix"), ("GET", "/v1/models")]
    assert [house.ask("busy/tasks", *each).status_code for each in asked] == [200, 200, 200]
    refused = house.ask("busy/tasks", "DELETE", "/tasks/t")
    assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limited")
    assert house.ask("other/tasks", "GET", "/tasks").status_code == 200


def test_a_flooding_tenant_is_429_and_a_quiet_one_is_queued(start_guarded: Callable[..., Guarded]) -> None:
    gate = Gate()
    house = start_guarded(
        Tenant(name="flood", limits=TenantLimits(max_queued=2)),
        Tenant(name="quiet"),
        engine=EchoEngine(before_step=gate),
    )

    def ask(tenant: str) -> int:
        return house.ask(f"{tenant}/generate", "POST", "/generate", json={"inputs": "ab"}).status_code

    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(ask, "flood") for _ in range(6)]  # four slots and two that wait
        house.server.wait_for_open_rows(6)
        assert ask("flood") == 429
        asked.append(pool.submit(ask, "quiet"))
        house.server.wait_for_open_rows(7)
        gate.open()
        assert [each.result() for each in asked] == [200] * 7
