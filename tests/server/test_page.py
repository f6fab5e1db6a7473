"""The page's files as the server gives them; what they do in a browser is proved in `tests/browser`."""

import re

from tests.server.conftest import Guarded, Running
from tests.server.fakes import EchoEngine


def test_the_page_needs_no_key_and_only_the_servers_own_files(start_guarded) -> None:  # type: ignore[no-untyped-def]
    house: Guarded = start_guarded(engine=EchoEngine())
    page = house.server.http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert links
    for link in links:
        answer = house.server.http.get(f"/{link}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache"), link
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search(r"https?://(?!www\.w3\.org/)", answer.text), f"{link} names another server"


def test_a_script_and_a_style_sheet_are_told_as_such(server: Running) -> None:
    assert "javascript" in server.http.get("/page/main.js").headers["content-type"]
    assert server.http.get("/page/page.css").headers["content-type"].startswith("text/css")


def test_a_file_that_did_not_change_is_not_sent_again(server: Running) -> None:
    etag = server.http.get("/page/main.js").headers["etag"]
    assert server.http.get("/page/main.js", headers={"if-none-match": etag}).status_code == 304


def test_nothing_beside_the_page_is_served(server: Running) -> None:
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "%2fetc%2fpasswd", "%00", "a" * 5000):
        answer = server.http.get(f"/page/{name}")
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found"), name


def test_a_post_to_the_root_is_a_request_for_text_and_other_answers_have_no_policy(server: Running) -> None:
    answer = server.http.post("/", json={"inputs": "ab"})
    assert [each["generated_text"] for each in answer.json()] == ["ab"]
    assert "content-security-policy" not in answer.headers
    refused = server.http.delete("/")
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "POST"})
