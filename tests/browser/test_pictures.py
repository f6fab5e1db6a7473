"""The pictures of the page in docs/images, taken from what these tests see."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import LOOKS, Guarded, Look
from tests.browser.load import asked_all_the_time
from tests.browser.server import NUM_SLOTS, ROOT, client_of, publish
from tests.browser.test_playground import UNLIKELY, run

IMAGES = ROOT / "docs" / "images"
LIVE_SECONDS = 20  # of requests, until the picture is full

pytestmark = pytest.mark.parametrize("look", [look for look in LOOKS if look.width > 1000], ids=str)


def take(page: Page, look: Look, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / f"{name}-{look.scheme}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < 200_000


def test_playground(page: Page, look: Look) -> None:
    run(page, "events_acts", "e2e", "topics", "e2e_fields", "weather_fields", "no prefix")
    token = page.get_by_role("article", name="Answer of e2e").locator(UNLIKELY).last
    token.hover()
    expect(page.get_by_role("tooltip")).to_be_visible()
    take(page, look, "playground")


def test_tasks(page: Page, look: Look, url: str) -> None:
    with client_of(url) as http:
        publish(http, "topics", "e2e")
        http.patch("/tasks/e2e", json={"version": 1}).raise_for_status()
        publish(http, "e2e")
    page.get_by_role("link", name="Tasks", exact=True).click()
    card = page.get_by_role("article", name="e2e", exact=True)
    card.get_by_text("Versions", exact=True).click()
    expect(card.get_by_role("button", name="Serve version 2 of e2e")).to_be_visible()
    take(page, look, "tasks")


def test_live(open_page: Callable[[str], Page], guarded: Guarded, look: Look) -> None:
    page = open_page(f"{guarded.url}/#live")
    page.get_by_label("API key").fill(guarded.keys["operator"])
    page.get_by_role("button", name="Sign in").click()
    acme, birch = (client_of(guarded.url, guarded.keys[tenant]) for tenant in ("acme", "birch"))
    with (
        acme,
        birch,
        asked_all_the_time(acme, guarded.tasks["acme"], NUM_SLOTS - 4),
        asked_all_the_time(birch, guarded.tasks["birch"], NUM_SLOTS // 2),
    ):
        page.wait_for_timeout(1000 * LIVE_SECONDS)
        take(page, look, "live")
