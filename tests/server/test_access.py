"""Who gets in: keys, scopes, and that a tenant sees nothing of another's, on every route that there is."""

import asyncio
import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from tokenizers import Tokenizer as Backend

from prefix_store.database import Database, sqlite_url
from prefix_store.errors import OutOfSpace, Unauthorized
from prefix_store.prefix import BackboneSpec
from prefix_store.principals import MAX_SECONDS, Principals
from prefix_store.store import PrefixStore
from prefix_store.tenant_registry import TenantRegistry
from prefix_store.tenants import Principal, Scope, Tenant, TenantLimits
from server.access import LOCAL, Access, Needs, is_loopback
from server.app import ROUTERS, ServerStartError, check_exposure, create_app
from server.first_key import write_first_key
from server.log import make_logger
from server.settings import Settings
from tests.server.conftest import FINGERPRINT, Guarded, Running, guarded, loader, prefix_file
from tests.server.fakes import SHAPE, EchoEngine, Gate

OPEN_TO_ALL = {("GET", path) for path in ("/health", "/ready", "/ping", "/", "/page/{name}")}
OPEN_TO_ALL |= {("HEAD", path) for path in ("/health", "/ready", "/ping", "/")}
ROUTES = [
    (method, route)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
    if (method, route.path) not in OPEN_TO_ALL
]
every_route = pytest.mark.parametrize(
    ("method", "route"), ROUTES, ids=[f"{method} {route.path}" for method, route in ROUTES]
)
OF_A_TASK = [(method, route) for method, route in ROUTES if "{task_id}" in route.path and method != "PUT"]
ACME, OTHER = Tenant(name="acme", weight=3.0), Tenant(name="other")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Backend) -> Iterator[Guarded]:
    """A server with two tenants; acme has the task `secret`."""
    with guarded(tmp_path_factory.mktemp("store"), byte_tokenizer, EchoEngine(), (ACME, OTHER)) as house:
        assert house.ask("acme/tasks", "PUT", "/tasks/secret", content=prefix_file()).status_code == 201
        yield house


def test_the_tables_of_this_file_know_every_route(house: Guarded) -> None:
    documented = {
        (method.upper(), path)
        for path, methods in house.server.http.get("/openapi.json").json()["paths"].items()
        for method in methods
        if (method.upper(), path) not in OPEN_TO_ALL
    }
    assert documented == {(method, route.path) for method, route in ROUTES}


def scopes_of(route: APIRoute) -> frozenset[Scope]:
    needs = [each.dependency for each in route.dependencies if isinstance(each.dependency, Needs)]
    assert len(needs) == 1, f"{route.path} says not, or twice, which key it needs"
    return needs[0].scopes


def body_for(method: str, path: str) -> dict[str, Any]:
    """Some body that is right enough for any route of the method."""
    if method == "PUT":
        return {"content": prefix_file()}
    return {"json": {"inputs": "ab"} if method == "POST" else {}} if method in ("POST", "PATCH") else {}


def error_type_of(answer: httpx.Response) -> str:
    """As the dialect of its route tells it."""
    body: dict[str, Any] = answer.json()
    return str(body["error_type"] if "error_type" in body else body["error"]["code"])


@every_route
def test_without_a_good_key_every_route_is_the_same_401(house: Guarded, method: str, route: APIRoute) -> None:
    path = route.path.format(task_id="secret", name="acme", key_id="x", model="secret")
    wrong = [None, "", "Bearer", "Bearer x", "Basic x", "Bearer pp_abcdefgh_" + "0" * 64, "Bearer pp_é"]
    answers = [
        house.server.http.request(
            method, path, headers={} if key is None else {"authorization": key.encode()}, **body_for(method, path)
        )
        for key in wrong
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.text for answer in answers} == {answers[0].text}
    assert error_type_of(answers[0]) in ("unauthorized", "invalid_api_key")
    assert answers[0].headers["www-authenticate"] == "Bearer"


@every_route
@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_opens_its_scopes_and_no_other(house: Guarded, method: str, route: APIRoute, scope: Scope) -> None:
    path = route.path.format(task_id="no-such", name="no-such", key_id="no-such", model="no-such")
    needed = scopes_of(route)
    headers = house.headers(f"other/{scope}")
    with house.server.http.stream(
        method, path, headers=headers, **body_for(method, path)
    ) as answer:  # /live never ends
        if needed and scope not in needed:
            answer.read()
            assert (answer.status_code, error_type_of(answer)) == (403, "forbidden")
        else:
            assert answer.status_code not in (401, 403)


@pytest.mark.parametrize(
    ("method", "route"),
    OF_A_TASK,
    ids=[f"{method} {route.path}" for method, route in OF_A_TASK],
)
def test_another_tenants_task_reads_like_an_unknown_one(house: Guarded, method: str, route: APIRoute) -> None:
    scope = next(iter(scopes_of(route) or {Scope.TASKS}))
    unknown, foreign = (
        house.ask(f"other/{scope}", method, route.path.format(task_id=name), **body_for(method, route.path))
        for name in ("nobody", "secret")
    )
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.text.replace("secret", "nobody") == unknown.text
    names = set(unknown.headers) | set(foreign.headers)
    assert all(unknown.headers.get(name) == foreign.headers.get(name) for name in names - {"date", "x-request-id"})


def test_another_tenants_task_is_in_no_list_and_no_answer(house: Guarded) -> None:
    for body in ({"task_id": "secret"}, {"parameters": {"adapter_id": "secret"}}):
        answer = house.ask("other/generate", "POST", "/generate", json={"inputs": "ab", **body})
        assert (answer.status_code, answer.json()["error"]) == (404, "no task 'secret'")
    assert house.ask("other/tasks", "GET", "/tasks").json() == {"tasks": [], "next": None}
    assert house.ask("other/tasks", "GET", "/info").json()["num_tasks"] == 0
    assert house.ask("acme/generate", "GET", "/info").json()["num_tasks"] == 1


def test_two_tenants_have_tasks_of_one_name_that_know_nothing_of_each_other(house: Guarded) -> None:
    mine, theirs = prefix_file(2, 0.1), prefix_file(5, 0.2)
    for tenant, body in (("acme", mine), ("other", theirs)):
        assert house.ask(f"{tenant}/tasks", "PUT", "/tasks/shared", content=body).status_code == 201
    assert house.ask("acme/tasks", "GET", "/tasks/shared/prefix").content == mine
    assert house.ask("other/tasks", "DELETE", "/tasks/shared").status_code == 204
    assert house.ask("acme/tasks", "GET", "/tasks/shared/prefix").content == mine


def test_the_probes_and_the_documents_need_no_key(house: Guarded) -> None:
    for path in ("/health", "/ready", "/ping", "/", "/page/main.js", "/docs", "/openapi.json"):
        assert house.server.http.get(path).status_code == 200
    assert house.server.http.get("/nowhere").status_code == 404


def test_only_an_operator_makes_a_task_of_its_tenant_public(house: Guarded) -> None:
    house.ask("acme/tasks", "PUT", "/tasks/common", content=prefix_file(4, 0.3))
    refused = house.ask("acme/tasks", "PATCH", "/tasks/common", json={"public": True})
    assert (refused.status_code, refused.json()["error_type"]) == (403, "forbidden")
    store = house.server.services.store
    both = store.tenants.create_key("acme", [Scope.TASKS, Scope.OPERATOR])[1]
    headers = {"authorization": f"Bearer {both}"}
    assert house.server.http.patch("/tasks/common", json={"public": True}, headers=headers).json()["public"] is True
    answer = house.ask("other/generate", "POST", "/generate", json={"inputs": "ab", "task_id": "common"})
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert house.ask("other/tasks", "DELETE", "/tasks/common").status_code == 404
    for key, own in (("acme/tasks", True), ("other/tasks", False)):
        task = house.ask(key, "GET", "/tasks/common").json()
        assert (task["public"], task["own"]) == (True, own)
        assert task in house.ask(key, "GET", "/tasks").json()["tasks"]


def test_a_revoked_key_is_refused_from_now_on(house: Guarded) -> None:
    tenants = house.server.services.store.tenants
    key, secret = tenants.create_key("acme", [Scope.GENERATE])
    headers = {"authorization": f"bearer {secret}"}
    assert house.server.http.get("/info", headers=headers).status_code == 200
    tenants.revoke_key(key.key_id)
    assert house.server.http.get("/info", headers=headers).status_code == 401


def test_a_key_that_is_revoked_while_a_file_comes_publishes_nothing(house: Guarded) -> None:
    tenants = house.server.services.store.tenants
    key, secret = tenants.create_key("acme", [Scope.TASKS])

    def body() -> Iterator[bytes]:
        file = prefix_file()
        yield file[:100]
        tenants.revoke_key(key.key_id)
        yield file[100:]

    headers = {"authorization": f"Bearer {secret}", "content-type": "application/octet-stream"}
    assert house.server.http.put("/tasks/late", content=body(), headers=headers).status_code == 401
    assert house.ask("acme/tasks", "GET", "/tasks/late").status_code == 404


def test_a_tenants_weight_goes_to_the_engine(start_guarded: Callable[..., Guarded]) -> None:
    gate = Gate()
    house = start_guarded(ACME, engine=EchoEngine(before_step=gate))
    thread = threading.Thread(
        target=house.ask, args=("acme/generate", "POST", "/generate"), kwargs={"json": {"inputs": "ab"}}
    )
    thread.start()
    gate.wait_until_held()
    assert [(each.tenant, each.weight) for each in house.server.engine.waiting] == [("acme", 3.0)]
    gate.open()
    thread.join()


def test_a_key_is_looked_up_without_holding_anybody_up(house: Guarded) -> None:
    tenants = house.server.services.store.tenants
    asked, let_go = threading.Event(), threading.Event()
    prove = tenants.prove

    def slow(secret: str) -> Any:
        asked.set()
        let_go.wait(20)
        return prove(secret)

    tenants.prove = slow  # type: ignore[method-assign]
    answers: list[httpx.Response] = []
    _, secret = tenants.create_key("acme", [Scope.GENERATE])
    thread = threading.Thread(
        target=lambda: answers.append(house.server.http.get("/info", headers={"authorization": f"Bearer {secret}"}))
    )
    thread.start()
    try:
        assert asked.wait(20)
        assert house.server.http.get("/ping").status_code == 200
    finally:
        let_go.set()
        thread.join()
        tenants.prove = prove  # type: ignore[method-assign]
    assert answers[0].status_code == 200


def test_a_large_body_without_a_key_is_401_after_little_was_read(house: Guarded) -> None:
    num_sent = 0
    with socket.create_connection(("127.0.0.1", house.server.port), 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        connection.sendall(b"PUT /tasks/big HTTP/1.1\r\nhost: x\r\ncontent-length: 67108864\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        with contextlib.suppress(ConnectionError):
            while num_sent < 64 << 20:
                num_sent += connection.send(b"\0" * 65536)
    assert num_sent < 16 << 20


def test_a_tenants_quota_is_403(start_guarded: Callable[..., Guarded]) -> None:
    house = start_guarded(Tenant(name="small", limits=TenantLimits(max_tasks=1)))
    assert house.ask("small/tasks", "PUT", "/tasks/one", content=prefix_file()).status_code == 201
    refused = house.ask("small/tasks", "PUT", "/tasks/two", content=prefix_file())
    assert (refused.status_code, refused.json()["error_type"]) == (403, "quota_exceeded")


def test_a_server_without_keys_serves_this_machine_only_unless_told_so_in_words() -> None:
    for host, no_auth, has_keys in [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("0.0.0.0", True, False),
        ("0.0.0.0", False, True),
    ]:
        check_exposure(Settings(host=host, no_auth=no_auth), has_keys)
    with pytest.raises(ServerStartError, match="say --no-auth"):
        check_exposure(Settings(host="0.0.0.0"), has_keys=False)
    with pytest.raises(ServerStartError, match="leave --no-auth out"):
        check_exposure(Settings(no_auth=True), has_keys=True)


def test_a_server_without_auth_says_so_at_every_start(start: Callable[..., Running]) -> None:
    server = start(no_auth=True)
    assert server.generate("ab")["generated_text"] == "ab"
    assert '"event": "no_auth", "level": "warning"' in server.log.getvalue()


def test_a_first_key_that_could_not_be_made_is_made_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutOfSpace("the registry's disk is full; nothing was kept")

    database, path = Database(sqlite_url(tmp_path / "registry.sqlite3")), tmp_path / "first-key"
    tenants = TenantRegistry(database)
    with monkeypatch.context() as patched:
        patched.setattr(tenants, "create_key", full)
        with pytest.raises(OutOfSpace):
            write_first_key(tenants, path)
    assert not path.exists()
    path.touch(0o644)  # as a process leaves it that is killed before there is a key
    write_first_key(tenants, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("pp_")
    with pytest.raises(FileExistsError, match="perhaps with the key of another store"):
        write_first_key(tenants, path)
    database.close()


def test_what_a_caller_names_moves_no_terminals_cursor() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    make_logger(terminal).info("request", path="/\x1b]0;mine\x07")
    assert "\x1b]0" not in terminal.getvalue()
    assert "mine" in terminal.getvalue()


def test_a_first_key_that_is_made_elsewhere_closes_an_open_server(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    server = start()
    assert server.http.get("/tasks").status_code == 200
    elsewhere = Database(sqlite_url(tmp_path / "store" / "registry.sqlite3"))
    tenants = TenantRegistry(elsewhere)
    tenants.add_tenant(ACME)
    _, secret = tenants.create_key("acme", [Scope.TASKS])
    made_at = asked_at = time.monotonic()
    while server.http.get("/tasks").status_code == 200:
        assert asked_at < made_at + MAX_SECONDS, "a request that was asked later still got in"
        asked_at = time.monotonic()
    for path in ("/tasks", "/metrics"):
        assert server.http.get(path).status_code == 401
    assert server.http.get("/tasks", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    elsewhere.close()


class CountedRegistry(TenantRegistry):
    num_looks = 0

    def has_keys(self) -> bool:
        self.num_looks += 1
        return super().has_keys()


def test_an_open_server_looks_for_keys_every_two_seconds_and_not_at_every_request(tmp_path: Path) -> None:
    now = 100.0
    with contextlib.closing(Database(sqlite_url(tmp_path / "registry.sqlite3"))) as database:
        tenants = CountedRegistry(database)
        access = Access(tenants, LOCAL, clock=lambda: now)
        assert [asyncio.run(access.principal(None)) for _ in range(100)] == [LOCAL] * 100
        assert tenants.num_looks == 1
        tenants.add_tenant(ACME)
        tenants.create_key("acme", [Scope.TASKS])
        assert asyncio.run(access.principal(None)) is LOCAL
        now += MAX_SECONDS
        for _ in range(2):
            with pytest.raises(Unauthorized):
                asyncio.run(access.principal(None))
        assert tenants.num_looks == 2


class SlowRegistry(TenantRegistry):
    """Proves a key when it is told to."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        super().__init__(database, principals=Principals(clock))
        self.asked, self.let_go = threading.Semaphore(0), threading.Semaphore(0)
        self.num_looks = 0

    def prove(self, secret: str) -> Principal:
        self.num_looks += 1
        self.asked.release()
        assert self.let_go.acquire(timeout=20)
        return super().prove(secret)

    async def was_asked(self, number: int) -> None:
        """Since the last time."""
        for _ in range(number):
            assert await asyncio.to_thread(self.asked.acquire, timeout=20)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[SlowRegistry, Access, list[float], str]]:
    """With its access, its clock and the header of a key."""
    now = [100.0]
    with contextlib.closing(Database(sqlite_url(tmp_path / "registry.sqlite3"))) as database:
        tenants = SlowRegistry(database, lambda: now[0])
        tenants.add_tenant(ACME)
        _, secret = tenants.create_key("acme", [Scope.GENERATE])
        yield tenants, Access(tenants, None, clock=lambda: now[0]), now, f"Bearer {secret}"


def test_many_who_bring_the_same_key_wait_for_one_look(slow: tuple[SlowRegistry, Access, list[float], str]) -> None:
    tenants, access, _, header = slow

    async def ask() -> None:
        asking = [asyncio.create_task(access.principal(header)) for _ in range(50)]
        await tenants.was_asked(1)
        asking.pop().cancel()  # one that leaves takes nothing from the others
        tenants.let_go.release()
        assert {principal.tenant for principal in await asyncio.gather(*asking)} == {"acme"}

    asyncio.run(ask())
    assert tenants.num_looks == 1


def test_a_key_in_use_is_looked_up_again_before_it_must_be(slow: tuple[SlowRegistry, Access, list[float], str]) -> None:
    """So that nobody waits for the registry every two seconds."""
    tenants, access, now, header = slow
    tenants.let_go.release()

    async def ask() -> None:
        await access.principal(header)
        now[0] += MAX_SECONDS * 0.6
        assert [access.known_principal(header) is not None for _ in range(50)] == [True] * 50
        await tenants.was_asked(2)
        tenants.let_go.release()
        await asyncio.gather(*access._lookups.values())
        assert tenants.num_looks == 2
        now[0] += MAX_SECONDS * 0.6
        assert access.known_principal(header) is not None
        tenants.let_go.release()

    asyncio.run(ask())


def test_who_comes_after_a_key_was_revoked_is_not_helped_by_a_look_from_before(
    slow: tuple[SlowRegistry, Access, list[float], str],
) -> None:
    tenants, access, _, header = slow

    async def ask() -> None:
        before = asyncio.create_task(access.principal(header))
        await tenants.was_asked(1)
        tenants.revoke_key(tenants.keys("acme")[0].key_id)
        after = asyncio.create_task(access.principal(header))
        await tenants.was_asked(1)
        tenants.let_go.release(2)
        await asyncio.wait([before, after])
        assert isinstance(after.exception(), Unauthorized)

    asyncio.run(ask())


def test_a_look_that_hangs_is_not_joined_by_who_comes_much_later(
    slow: tuple[SlowRegistry, Access, list[float], str],
) -> None:
    """What it will say may be older than the two seconds within which a revoked key is refused."""
    tenants, access, now, header = slow

    async def ask() -> None:
        before = asyncio.create_task(access.principal(header))
        await tenants.was_asked(1)
        now[0] += MAX_SECONDS / 2
        after = asyncio.create_task(access.principal(header))
        await tenants.was_asked(1)
        tenants.let_go.release(2)
        await asyncio.gather(before, after)

    asyncio.run(ask())


def test_a_key_that_is_refused_when_it_is_looked_up_again_is_refused_from_then_on(
    slow: tuple[SlowRegistry, Access, list[float], str], tmp_path: Path
) -> None:
    tenants, access, now, header = slow
    tenants.let_go.release(2)

    async def ask() -> None:
        await access.principal(header)
        with contextlib.closing(Database(sqlite_url(tmp_path / "registry.sqlite3"))) as elsewhere:
            TenantRegistry(elsewhere).change_tenant("acme", lambda tenant: replace(tenant, disabled=True))
        now[0] += MAX_SECONDS * 0.6
        assert access.known_principal(header) is not None
        await asyncio.wait(access._lookups.values())
        assert access.known_principal(header) is None

    asyncio.run(ask())


def test_which_addresses_are_this_machines_own() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5


def test_a_server_that_refuses_to_start_gives_its_store_back(tmp_path: Path, byte_tokenizer: Backend) -> None:
    app = create_app(Settings(store=tmp_path, host="0.0.0.0"), loader(byte_tokenizer, EchoEngine()))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(ServerStartError):
        asyncio.run(start())
    PrefixStore(tmp_path, backbone=BackboneSpec("tiny", SHAPE, FINGERPRINT)).close()
