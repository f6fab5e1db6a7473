"""The frame around the views: links, keyboard, and that there is nothing a small window cannot show."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import assert_accessible


@pytest.mark.parametrize("view", ["Playground", "Tasks", "Live"])
def test_each_view_has_its_address_and_its_title(page: Page, url: str, view: str) -> None:
    page.get_by_role("link", name=view, exact=True).click()
    expect(page).to_have_url(f"{url}/#{view.lower()}")
    expect(page).to_have_title(f"{view} · Polyprefix")
    expect(page.get_by_role("heading", name=view, level=1)).to_be_attached()
    expect(page.locator("nav a[aria-current='page']")).to_have_text(view)
    expect(page.locator("main > section:visible")).to_have_count(1)
    assert_accessible(page)
    page.reload()
    expect(page.locator("nav a[aria-current='page']")).to_have_text(view)


def test_the_keyboard_comes_to_everything(page: Page) -> None:
    page.locator(".choice").first.wait_for()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Input", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    first = page.locator(".choice input").first
    if page.locator("#task-filter").is_visible():
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    was_checked = first.is_checked()
    page.keyboard.press("Space")
    expect(page.locator(".choice input").first).to_be_checked(checked=not was_checked)
    expect(page.locator(".choice input").first).to_be_focused()
