"""The key: asked for where one is needed, kept in the tab and nowhere else."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Guarded, assert_accessible


@pytest.fixture
def page(open_page: Callable[[str], Page], guarded: Guarded) -> Page:
    return open_page(f"{guarded.url}/")


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()


def test_a_wrong_key_is_refused_in_words_and_a_good_one_opens_the_page(page: Page, guarded: Guarded) -> None:
    expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
    assert_accessible(page)
    sign_in(page, "pp_wrong")
    expect(page.get_by_role("alert")).to_contain_text("key")
    assert_accessible(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
    sign_in(page, guarded.keys["acme"])
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator(".choice")).to_have_text([*sorted(guarded.tasks["acme"]), "no prefix"])


def test_the_key_is_kept_in_the_tab_and_nowhere_else(
    page: Page, open_page: Callable[[str], Page], guarded: Guarded
) -> None:
    sign_in(page, guarded.keys["acme"])
    expect(page.locator(".choice")).to_have_count(4)
    page.reload()
    expect(page.locator(".choice")).to_have_count(4)
    assert guarded.keys["acme"] not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.evaluate("Object.values(sessionStorage)") == [guarded.keys["acme"]]
    another = open_page(f"{guarded.url}/")
    expect(another.get_by_role("dialog", name="Sign in")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_requests_carry_the_key_and_snippets_only_its_name(page: Page, guarded: Guarded) -> None:
    sign_in(page, guarded.keys["acme"])
    page.get_by_role("checkbox", name="e2e", exact=True).check(force=True)
    page.get_by_label("Input", exact=True).fill("name : The Punter | food : Italian")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#summary")).to_contain_text("tokens in")
    for dialect in ("curl", "Python", "OpenAI"):
        page.get_by_role("tab", name=dialect).click()
        expect(page.locator("#snippet")).to_contain_text("POLYPREFIX_API_KEY")
        expect(page.locator("#snippet")).not_to_contain_text("pp_")
