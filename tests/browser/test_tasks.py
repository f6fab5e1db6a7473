"""Tasks on the page: uploads, versions, rollback, settings, deletion."""

import json

import pytest
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.browser.conftest import Look, assert_accessible
from tests.browser.server import client_of, generated, prefix_of, publish

INPUTS = "dog ball park"
DROP = """([name, bytes, target]) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], name));
  for (const type of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture
def name(look: Look, request: pytest.FixtureRequest) -> str:
    """A task of the test's own."""
    return f"{request.node.originalname.removeprefix('test_')[:40]}-{look}"


@pytest.fixture
def tasks(page: Page) -> Page:
    page.get_by_role("link", name="Tasks", exact=True).click()
    page.locator(".task").first.wait_for()
    return page


def reload(page: Page) -> None:
    page.reload()
    page.locator(".task").first.wait_for()


def file(name: str, content: bytes) -> FilePayload:
    return {"name": f"{name}.safetensors", "mimeType": "application/octet-stream", "buffer": content}


def card(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def is_served(page: Page, name: str, version: int) -> None:
    row = card(page, name).locator("tr", has=page.get_by_role("rowheader", name=str(version), exact=True))
    expect(row.locator(".badge")).to_have_text("served")


def test_files_are_uploaded_by_choice(tasks: Page, url: str, name: str) -> None:
    files = [file(f"{name}-1", prefix_of("e2e")), file(f"{name}-2", prefix_of("events_acts"))]
    tasks.locator("#files").set_input_files(files)
    outcomes = tasks.locator("#uploads .facts")
    expect(outcomes).to_have_count(2)
    expect(outcomes.first).to_contain_text("version 1 is served")
    expect(outcomes.last).to_contain_text("version 1 is served")
    expect(card(tasks, f"{name}-1")).to_contain_text("128 virtual tokens")
    with client_of(url) as http:
        assert http.get(f"/tasks/{name}-2/prefix").content == prefix_of("events_acts")
    assert_accessible(tasks)


def test_a_file_is_uploaded_by_drag_and_drop(tasks: Page, url: str, name: str) -> None:
    tasks.get_by_label("Task", exact=True).fill(name)
    zone = tasks.locator("#upload").element_handle()
    tasks.evaluate(DROP, ["anything.safetensors", list(prefix_of("events_1")), zone])
    expect(tasks.locator("#uploads .facts")).to_contain_text("version 1 is served: 64 virtual tokens")
    expect(card(tasks, name)).to_be_visible()
    with client_of(url) as http:
        assert http.get(f"/tasks/{name}/prefix").content == prefix_of("events_1")


@pytest.mark.parametrize(
    ("content", "task_id", "reason"),
    [
        (b"\x80\x04 a pickle, say", None, "header"),
        (prefix_of("e2e")[:-2], None, "bytes"),
        (b"\0" * (9 << 20), None, "larger than"),
        (prefix_of("e2e"), "no spaces allowed", "letters"),
        (prefix_of("e2e"), "base", "no task can have that name"),
    ],
    ids=["no file of ours", "cut off", "too large", "a name with spaces", "a reserved name"],
)
def test_a_refusal_is_told_in_words(tasks: Page, name: str, content: bytes, task_id: str | None, reason: str) -> None:
    if task_id:
        tasks.get_by_label("Task", exact=True).fill(task_id)
    tasks.locator("#files").set_input_files([file(name, content)])
    refusal = tasks.locator("#uploads").get_by_role("alert")
    expect(refusal).to_contain_text(reason)
    expect(tasks.locator("#uploads progress")).to_have_count(0)
    expect(card(tasks, name)).to_have_count(0)
    assert_accessible(tasks)


def test_an_older_version_is_served_again(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "events_acts", name)
        publish(http, "topics", name)
        reload(tasks)
        card(tasks, name).get_by_text("Versions", exact=True).click()
        is_served(tasks, name, 2)
        assert_accessible(tasks)
        tasks.get_by_role("button", name=f"Serve version 1 of {name}").click()
        is_served(tasks, name, 1)
        assert http.get(f"/tasks/{name}").json()["version"] == 1
        assert generated(http, name, INPUTS, max_new_tokens=8) == generated(
            http, "events_acts", INPUTS, max_new_tokens=8
        )


def test_settings_that_are_not_saved_stay_as_typed_where_the_task_was_used(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "e2e", name)
        reload(tasks)
        card(tasks, name).get_by_text("Settings", exact=True).click()
        card(tasks, name).get_by_label("Description").fill("Not saved yet")
        generated(http, name, INPUTS)
        while http.get(f"/tasks/{name}").json()["usage"]["requests"] == 0:  # written down every few seconds
            tasks.wait_for_timeout(100)
        tasks.get_by_role("link", name="Playground", exact=True).click()
        tasks.get_by_role("link", name="Tasks", exact=True).click()
        expect(card(tasks, name)).to_contain_text("1 request")
        expect(card(tasks, name).get_by_label("Description")).to_have_value("Not saved yet")
        card(tasks, name).get_by_role("button", name="Save", exact=True).click()
        expect(card(tasks, name).locator("header + p")).to_have_text("Not saved yet")
        assert http.get(f"/tasks/{name}").json()["config"]["description"] == "Not saved yet"


def test_settings_that_nobody_touched_stay_as_they_are(tasks: Page, url: str, name: str) -> None:
    """The page cannot hold them all: line ends that are two characters, numbers beyond 2^53."""
    kept = {"prompt_template": "a\r\n{inputs}", "parameters": {"seed": 2**63 + 1}}
    with client_of(url) as http:
        publish(http, "events_acts", name)
        http.patch(f"/tasks/{name}", json={"config": kept}).raise_for_status()
        reload(tasks)
        card(tasks, name).get_by_text("Settings", exact=True).click()
        card(tasks, name).get_by_label("Description").fill("Two\nlines")
        card(tasks, name).get_by_role("button", name="Save", exact=True).click()
        expect(card(tasks, name).locator("header + p")).to_have_text("Two lines")
        config = http.get(f"/tasks/{name}").json()["config"]
        assert config["description"] == "Two\nlines"
        assert config["prompt_template"] == kept["prompt_template"]
        assert config["parameters"]["seed"] == 2**63 + 1


def test_versions_that_share_the_requests_say_so_and_one_can_be_served_alone(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "events_acts", name)
        http.put(f"/tasks/{name}", content=prefix_of("e2e")).raise_for_status()
        http.patch(f"/tasks/{name}", json={"traffic": {"1": 0.1, "2": 0.9}}).raise_for_status()
        reload(tasks)
        card(tasks, name).get_by_text("Versions", exact=True).click()
        for version, share in ((1, "10"), (2, "90")):
            row = card(tasks, name).locator("tr", has=tasks.get_by_role("rowheader", name=str(version), exact=True))
            expect(row.locator(".badge")).to_have_text(f"{share} % of requests")
        tasks.get_by_role("button", name=f"Serve version 2 of {name}").click()
        is_served(tasks, name, 2)
        assert http.get(f"/tasks/{name}").json()["traffic"] is None


def test_of_more_tasks_than_are_loaded_a_filter_finds_those_that_begin_so(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "events_acts", name)
        others = [{**http.get(f"/tasks/{name}").json(), "task_id": f"a{i}"} for i in range(500)]
    pages = {"tasks": others, "next": "a499"}  # for ever
    tasks.route("**/tasks?limit=500*", lambda route: route.fulfill(json=pages))
    for sought in (name[:-1], name):
        reload(tasks)
        expect(tasks.locator("#num-tasks")).to_contain_text("2,000 tasks, and more")
        tasks.locator("#list-filter").fill(sought)
        expect(card(tasks, name)).to_be_visible()


def test_settings_are_kept_and_wrong_ones_refused(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "events_acts", name)
        reload(tasks)
        settings = card(tasks, name)
        settings.get_by_text("Settings", exact=True).click()
        settings.get_by_label("Description").fill("Sentences of words")
        settings.get_by_label("Prompt template, with one {inputs}").fill("{inputs} !\n")
        settings.get_by_label("Default parameters, as JSON").fill('{"max_new_tokens": 7, "stop": ["."]}')
        for role in ("system", "user", "assistant"):
            settings.get_by_label(role, exact=True).fill(f"{role}: {{content}}")
        assert_accessible(tasks)
        settings.get_by_role("button", name="Save", exact=True).click()
        expect(settings.locator("header + p")).to_have_text("Sentences of words")
        config = http.get(f"/tasks/{name}").json()["config"]
        assert config["prompt_template"] == "{inputs} !\n"
        assert {key: value for key, value in config["parameters"].items() if value is not None} == {
            "max_new_tokens": 7,
            "stop": ["."],
        }
        assert config["chat_template"]["user"] == "user: {content}"

        settings.get_by_label("Default parameters, as JSON").fill("{")
        settings.get_by_role("button", name="Save", exact=True).click()
        expect(settings.get_by_role("alert")).to_contain_text("not JSON")
        settings.get_by_label("Default parameters, as JSON").fill(json.dumps({"top_p": 3}))
        settings.get_by_role("button", name="Save", exact=True).click()
        expect(settings.get_by_role("alert")).to_contain_text("top_p")
        assert http.get(f"/tasks/{name}").json()["config"] == config


def test_a_task_is_deleted_after_a_question(tasks: Page, url: str, name: str) -> None:
    with client_of(url) as http:
        publish(http, "events_1", name)
        reload(tasks)
        for answer, status in (("Cancel", 200), ("Delete", 404)):
            tasks.get_by_role("button", name=f"Delete {name}").click()
            dialog = tasks.get_by_role("dialog", name=f"Delete {name}?")
            assert_accessible(tasks)
            dialog.get_by_role("button", name=answer, exact=True).click()
            expect(dialog).to_be_hidden()
            expect(card(tasks, name)).to_have_count(int(answer == "Cancel"))
            assert http.get(f"/tasks/{name}").status_code == status


def test_a_task_is_found_by_its_name_and_tried_in_the_playground(tasks: Page) -> None:
    tasks.locator("#list-filter").fill("E2E_F")
    expect(tasks.locator("#task-list .task")).to_have_count(1)
    expect(tasks.locator("#num-tasks")).to_contain_text("1 of ")
    tasks.get_by_role("link", name="Try e2e_fields").click()
    expect(tasks.locator(".choice:has(:checked)")).to_have_text(["e2e_fields"])
    expect(tasks.get_by_label("Input", exact=True)).to_be_focused()


def test_a_long_list_is_found_in(tasks: Page, url: str) -> None:
    """More tasks than are seen at a glance: the playground has a filter too."""
    with client_of(url) as http:
        for i in range(6):
            publish(http, "events_1", f"many-{i}")
    tasks.reload()
    tasks.get_by_role("link", name="Playground").click()
    tasks.get_by_role("searchbox", name="Find a task").fill("many-3")
    expect(tasks.locator(".choice:not(:has(:checked))")).to_have_text(["many-3", "no prefix"])
