"""One input through several tasks side by side, and all that is shown of it."""

import json
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import assert_accessible
from tests.browser.server import PYTHON, ROOT, client_of, generated

INPUTS = "name : The Punter | eatType : pub | food : Italian | area : riverside"
UNLIKELY = ".token.surprise-2, .token.surprise-3, .token.surprise-4"  # at most 50 %


def choose(page: Page, *task_ids: str) -> None:
    """These tasks and no other; `no prefix` is the bare backbone."""
    page.locator(".choice").first.wait_for()
    for name in page.locator(".choice:has(:checked)").all_inner_texts():
        page.get_by_role("checkbox", name=name, exact=True).uncheck(force=True)
    for task_id in task_ids:
        page.get_by_role("checkbox", name=task_id, exact=True).check(force=True)


def run(page: Page, *task_ids: str, inputs: str = INPUTS) -> None:
    choose(page, *task_ids)
    page.get_by_label("Input", exact=True).fill(inputs)
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#summary")).to_contain_text("tokens in")


def set_parameter(page: Page, name: str, value: str) -> None:
    if not page.get_by_label(name, exact=True).is_visible():
        page.get_by_text("Parameters", exact=True).click()
    page.get_by_label(name, exact=True).fill(value)


def text_of(page: Page, task_id: str) -> str:
    answer = page.get_by_role("article", name=f"Answer of {task_id}", exact=True)
    return "".join(answer.locator(".token:not(.end)").all_text_contents())


def test_one_input_runs_through_several_tasks_side_by_side(page: Page, url: str) -> None:
    run(page, "e2e", "events_acts", "topics", "no prefix")
    with client_of(url) as http:
        for task_id, shown in (
            ("e2e", "e2e"),
            ("events_acts", "events_acts"),
            ("topics", "topics"),
            (None, "no prefix"),
        ):
            assert text_of(page, shown) == generated(http, task_id, INPUTS)
    expect(page.locator("#summary")).to_contain_text("held rows of several of these tasks")
    expect(page.locator(".answer .state")).to_have_text(["done"] * 4)
    assert_accessible(page)


def test_tokens_are_coloured_by_their_probability_and_show_what_else_was_likely(page: Page) -> None:
    run(page, "e2e")
    surprising = page.locator(UNLIKELY).first
    surprising.hover()
    shown = page.get_by_role("tooltip")
    expect(shown.locator(".alternative")).to_have_count(5)
    chosen = shown.locator(".alternative.chosen")
    assert chosen.locator("code").inner_text().strip("␣⏎") == surprising.inner_text().strip()
    shares = [float(text.removesuffix(" %")) for text in shown.locator(".share-text").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert_accessible(page)
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()


def test_it_works_by_the_keyboard_alone(page: Page) -> None:
    choose(page, "e2e")
    page.get_by_label("Input", exact=True).focus()
    page.keyboard.type(INPUTS)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#summary")).to_contain_text("tokens in")
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowRight")
    second = page.locator(".token").nth(1)
    expect(second).to_be_focused()
    expect(second).to_have_attribute("aria-label", page.locator(".token").nth(1).get_attribute("aria-label") or "")
    expect(page.get_by_role("tooltip")).to_be_visible()
    page.keyboard.press("End")
    expect(page.locator(".token").last).to_be_focused()
    expect(page.locator(".token[tabindex='0']")).to_have_count(1)
    expect(page.locator("#said")).to_contain_text("e2e:")


def test_parameters_go_with_the_request(page: Page, url: str) -> None:
    set_parameter(page, "New tokens", "9")
    set_parameter(page, "Temperature", "1.2")
    set_parameter(page, "Seed", "7")
    set_parameter(page, "Top-k", "40")
    run(page, "e2e")
    with client_of(url) as http:
        expected = generated(http, "e2e", INPUTS, max_new_tokens=9, temperature=1.2, seed=7, top_k=40)
    assert text_of(page, "e2e") == expected
    set_parameter(page, "Stop strings, one a line", f"never said\n{expected[6:9]}")
    run(page, "e2e")
    assert text_of(page, "e2e") == expected[: expected.index(expected[6:9])]
    expect(page.locator(".answer .facts")).to_contain_text("stop string")
    assert_accessible(page)


def test_a_value_that_cannot_be_is_not_sent_and_one_that_does_not_fit_is_refused_in_words(page: Page) -> None:
    choose(page, "e2e")
    set_parameter(page, "Top-p", "2")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".answer")).to_have_count(0)
    set_parameter(page, "Top-p", "")
    set_parameter(page, "New tokens", "100000")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".answer .refusal")).to_contain_text("the backbone has")
    assert_accessible(page)


def test_a_run_can_be_stopped(page: Page) -> None:
    set_parameter(page, "New tokens", "400")
    choose(page, "no prefix")
    page.get_by_label("Input", exact=True).fill(INPUTS)
    page.get_by_role("button", name="Run").click()
    page.locator(".token").nth(2).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".answer .state")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()


@pytest.mark.parametrize("dialect", ["curl", "Python", "OpenAI"])
def test_the_request_as_it_is_shown_gives_the_same_text(page: Page, url: str, dialect: str) -> None:
    set_parameter(page, "New tokens", "6")
    inputs = 'name : Fitzbillies\' "café" | food : Italian'
    run(page, "e2e", inputs=inputs)
    page.get_by_role("tab", name="curl").focus()
    for _ in range(["curl", "Python", "OpenAI"].index(dialect)):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name=dialect)).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    snippet = page.evaluate("navigator.clipboard.readText()")
    assert snippet == page.locator("#snippet").text_content()
    command = {"curl": ["bash", "-c"], "Python": [PYTHON, "-c"], "OpenAI": [sys.executable, "-c"]}[dialect]
    said = subprocess.run([*command, snippet], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True).stdout
    assert text_of(page, "e2e") == (json.loads(said)["generated_text"] if dialect == "curl" else said[:-1])
    assert_accessible(page)
