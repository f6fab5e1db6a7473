"""The page in a real browser, in light and dark, small and large, on a real server; no page may ask anybody else.

Run by `make test-browser`, in an environment that holds the browser's driver and none of ours. What was counted is
written down in docs/clients.json.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.server import ROOT, TASKS, client_of, key_of, publish, run_admin, serving

REPORT = ROOT / "docs" / "clients.json"
CHROMIUM = "/usr/bin/chromium"
WAIT = 20_000  # ms; the machine may be busy

expect.set_options(timeout=WAIT)
outcomes: Counter[str] = Counter()
files_run: set[str] = set()
axe_counts: Counter[str] = Counter()


@dataclass(frozen=True)
class Look:
    scheme: str
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.scheme}-{self.width}"


LOOKS = [Look(scheme, *size) for scheme in ("light", "dark") for size in ((390, 844), (1440, 900))]


@dataclass(frozen=True)
class Guarded:
    """A server with keys: two tenants, each with three tasks."""

    url: str
    tasks: dict[str, list[str]]  # by tenant
    keys: dict[str, str]  # by tenant; `operator` is acme's, for all it has


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=LOOKS, ids=str)
def look(request: pytest.FixtureRequest) -> Look:
    return request.param


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without keys, with all embedded tasks."""
    with serving(tmp_path_factory.mktemp("server")) as url:
        with client_of(url) as http:
            for task_id in TASKS:
                publish(http, task_id)
        yield url


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    keys = {}
    tasks = {"acme": ["events_acts", "e2e", "weather_fields"], "birch": ["events_1", "topics", "e2e_fields"]}
    for tenant in tasks:
        run_admin(directory, "tenant", "add", tenant)
        keys[tenant] = key_of(run_admin(directory, "key", "create", tenant))
    keys["operator"] = key_of(
        run_admin(
            directory, "key", "create", "acme", *(f"--scope={each}" for each in ("operator", "generate", "tasks"))
        )
    )
    with serving(directory) as url:
        for tenant, task_ids in tasks.items():
            with client_of(url, keys[tenant]) as http:
                for task_id in task_ids:
                    publish(http, task_id)
        yield Guarded(url, tasks, keys)


@pytest.fixture
def open_page(browser: Browser, look: Look) -> Iterator[Callable[[str], Page]]:
    """Open the page at an address. At the end it must have asked its own server only, and have raised no error."""
    context = browser.new_context(
        viewport={"width": look.width, "height": look.height},
        color_scheme=look.scheme,  # type: ignore[arg-type]
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(WAIT)
    origins: set[str] = set()
    problems: list[str] = []

    def open_page(address: str) -> Page:
        page = context.new_page()
        origin = address.partition("#")[0].rstrip("/")
        page.on(
            "request",
            lambda request: origins.add(
                request.url.removeprefix(origin)[:8] if not request.url.startswith(origin + "/") else ""
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console", lambda message: problems.append(message.text) if "Content Security" in message.text else None
        )
        page.goto(address)
        return page

    yield open_page
    context.close()
    assert origins <= {""}, "the page asked another server"
    assert problems == []


@pytest.fixture
def page(open_page: Callable[[str], Page], url: str) -> Page:
    return open_page(url)


def assert_accessible(page: Page) -> None:
    """axe-core finds nothing, and nothing is wider than the window."""
    found = Axe().run(page)
    axe_counts["axe_checks"] += 1
    axe_counts["axe_violations"] += found.violations_count
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "failed":
        outcomes[report.outcome] += 1
        files_run.add(Path(report.location[0]).name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Add the counts of a whole run to the report of the other clients."""
    all_files = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    if files_run != all_files or session.config.getoption("keyword"):
        return
    report = json.loads(REPORT.read_text())
    report.update(browser_cases=outcomes.total(), browser_failures=outcomes["failed"], **axe_counts)
    REPORT.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
