"""Every link and picture of the documents leads somewhere, and every anchor to a heading."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name_of, prose_of

LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
ELSEWHERE = ("https://", "http://", "mailto:")


def anchor_of(heading: str) -> str:
    """As the site and code hosts name it: letters, digits, hyphens and underscores, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading)).strip().lower().replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    return {anchor_of(heading) for heading in HEADING.findall(prose_of(page))}


def links_of(page: Path) -> list[str]:
    found = LINK.findall(CODE.sub("", prose_of(page)))
    return [markdown or html for markdown, html in found if not (markdown or html).startswith(ELSEWHERE)]


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    wrong = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        is_there = target.exists() and target.is_relative_to(root)
        if not is_there or (anchor and anchor not in anchors_of(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '# How [large](page.md), and `why`?\n[a](#how-large-and-why) [b](#why) [c](../c.md)\n<img src="d.png">\n'
    )
    assert broken_links(page, tmp_path) == ["#why", "../c.md", "d.png"]
