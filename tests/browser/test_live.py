"""The live view on a working engine: what it shows, and to whom."""

import re
from collections.abc import Callable

from playwright.sync_api import ElementHandle, Page, expect

from tests.browser.conftest import Guarded, assert_accessible
from tests.browser.load import asked_all_the_time
from tests.browser.server import NUM_SLOTS, client_of

NUM_AT_ONCE = NUM_SLOTS + 8
COLOURS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) seen.add(`${data[i]} ${data[i + 1]} ${data[i + 2]}`);
  return [...seen];
}"""
COLOUR_OF = """(name) => {
  const dot = [...document.querySelectorAll("#step-legend li")].find((item) => item.textContent === name).firstChild;
  return getComputedStyle(dot).backgroundColor.match(/\\d+/g).join(" ");
}"""


def watch(page: Page) -> None:
    page.get_by_role("link", name="Live").click()


def steps(page: Page) -> ElementHandle:
    """Their picture; rows that read their prompts are drawn paler than the tasks' own colours."""
    return page.locator("#steps").element_handle()


def test_rows_of_each_task_are_drawn_in_its_colour_and_counted(page: Page, url: str) -> None:
    watch(page)
    with client_of(url) as http, asked_all_the_time(http, ["e2e", "events_acts", "topics"], NUM_AT_ONCE):
        tiles = page.locator("#tiles")
        expect(tiles).to_contain_text(f"of {NUM_SLOTS} slots, 3 tasks")
        expect(page.get_by_role("img", name="of events_acts")).to_be_visible()
        for task_id in ("e2e", "events_acts", "topics"):
            colour = page.evaluate(COLOUR_OF, task_id)
            page.wait_for_function(f"(canvas) => ({COLOURS})(canvas).includes('{colour}')", arg=steps(page))
        for tile in ("First token", "Between two tokens"):
            expect(tiles.locator("div", has_text=tile).locator("b")).to_contain_text("ms")
        expect(tiles.locator("div", has_text="Prefix cache hits")).to_contain_text("prefixes")
        expect(tiles.locator("div", has_text="Tokens per second").locator("b")).not_to_have_text("0")
        expect(page.locator("#queue")).to_contain_text("default")
        assert_accessible(page)
    expect(page.locator("#live-state")).to_have_text("idle")
    expect(page.locator("#queue")).to_have_text("Nobody waits.")


def test_it_can_be_paused(page: Page, url: str) -> None:
    watch(page)
    with client_of(url) as http, asked_all_the_time(http, ["e2e"], 4):
        expect(page.locator("#live-state")).to_contain_text("pass")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#live-state")).to_have_text("paused")
        before = page.locator("#steps").evaluate("(canvas) => canvas.toDataURL()")
        page.wait_for_timeout(500)
        assert page.locator("#steps").evaluate("(canvas) => canvas.toDataURL()") == before
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("#live-state")).to_contain_text("pass")


def test_a_tenant_sees_others_rows_without_names_and_an_operator_sees_them_all(
    open_page: Callable[[str], Page], guarded: Guarded
) -> None:
    acme, birch = (client_of(guarded.url, guarded.keys[tenant]) for tenant in ("acme", "birch"))
    with (
        acme,
        birch,
        asked_all_the_time(acme, guarded.tasks["acme"], 4),
        asked_all_the_time(birch, guarded.tasks["birch"], 4),
    ):
        for key, legend in (
            ("birch", [*guarded.tasks["birch"], "other rows"]),
            ("operator", [f"{tenant}/{task}" for tenant, tasks in guarded.tasks.items() for task in tasks]),
        ):
            page = open_page(f"{guarded.url}/#live")
            page.get_by_label("API key").fill(guarded.keys[key])
            page.get_by_role("button", name="Sign in").click()
            names = page.locator("#step-legend li")
            for name in legend:
                expect(names.filter(has_text=name)).to_have_count(1)
            if key == "birch":
                assert "acme" not in page.content()
                assert not re.search(r"\be2e\b", page.content()), "birch has e2e_fields"
                expect(page.locator("#tiles")).not_to_contain_text("cache")
            assert_accessible(page)
            page.close()
