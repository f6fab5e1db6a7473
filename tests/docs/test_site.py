"""The site is built strictly from the pages, has the whole HTTP API, and asks nobody else for anything."""

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

from docs.hooks import http_reference, outside_links
from server.app import create_app
from server.settings import Settings
from tests.docs.pages import ROOT

PICTURES = sorted(ROOT.glob("docs/images/*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
LOADED = re.compile(r"<(?:script|link|img|iframe|source|object)\b[^>]*?\b(?:src|srcset|href)=\"?([^\" >]+)")
FROM_ELSEWHERE = re.compile(r"(?:https?:)?//")
HEADING = re.compile(r"<h[23] id=\"([^\"]+)\">(.*?)<a class=\"headerlink\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = {link for page in site.glob("*.html") for link in LOADED.findall(page.read_text(encoding="utf-8"))}
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert len(loaded) > 5
    assert {link for link in loaded if FROM_ELSEWHERE.match(link)} == set()
    assert re.findall(r"url\(['\"]?(?:https?:)?//|@import", styles) == []


def test_every_route_and_every_body_is_on_the_page_of_the_api(site: Path) -> None:
    document = create_app(Settings()).openapi()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    headings = {unescape(text) for _, text in HEADING.findall((site / "api.html").read_text(encoding="utf-8"))}
    assert len(routes) > 25
    assert routes | set(document["components"]["schemas"]) <= headings


def test_what_is_no_page_is_not_on_the_site(site: Path) -> None:
    assert not (site / "hooks").exists()
    assert [page for page in site.glob("*.html") if re.search(r"href=\"?\.\./", page.read_text(encoding="utf-8"))] == []


def test_links_out_of_the_folder_become_paths_and_blocks_stay() -> None:
    markdown = (
        "[a.py](../b/a.py) and [how](../README.md#how)\n```sh\n[a.py](../b/a.py)\n```\n[`rules`](../rules) [c](c.md)"
    )
    assert outside_links.on_page_markdown(markdown) == (
        "`b/a.py` and how (`README.md`)\n```sh\n[a.py](../b/a.py)\n```\n`rules` [c](c.md)"
    )


def test_a_document_in_words() -> None:
    integer = {"type": "integer", "minimum": 1, "maximum": 64}
    document = {
        "paths": {
            "/score": {
                "post": {
                    "summary": "Score",
                    "parameters": [{"name": "n", "in": "query", "schema": {**integer, "default": 2}}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}},
                    "responses": {"204": {}, "404": {"content": {"application/json": {"schema": {"type": "string"}}}}},
                }
            }
        },
        "components": {
            "schemas": {
                "Body": {
                    "description": "What is\nasked.",
                    "required": ["text"],
                    "properties": {
                        "text": {"type": "string", "pattern": "a|b"},
                        "n": {"anyOf": [integer, {"type": "null"}]},
                    },
                }
            }
        },
    }
    lines = [line for line in http_reference.reference(document).splitlines() if line]
    assert lines == [
        "## Routes: page",
        "### POST /score",
        "**Score.** Asks for no key.",
        "| parameter | in | what |",
        "|---|---|---|",
        "| `n` | query | integer (≥ 1, ≤ 64); default `2` |",
        "Body: [Body](#body) as `application/json`.",
        "Answer 204: no body.",
        "Errors: 404; string as `application/json`.",
        "## Bodies",
        "### Body",
        "What is asked.",
        "| field | what |",
        "|---|---|",
        "| `text` | string (`a\\|b`); required |",
        "| `n` | integer (≥ 1, ≤ 64) or null |",
    ]


def test_only_the_page_of_the_api_is_filled_in() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="serve.md"))
    assert http_reference.on_page_markdown(http_reference.PLACE, page) == http_reference.PLACE
    assert (ROOT / "docs" / http_reference.PAGE).read_text(encoding="utf-8").count(http_reference.PLACE) == 1


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_says_what_it_shows_and_can_be_read_in_the_dark(picture: Path) -> None:
    drawing = ElementTree.parse(picture).getroot()
    title, desc = drawing.find(f"{SVG}title"), drawing.find(f"{SVG}desc")
    assert title is not None
    assert desc is not None
    assert drawing.get("role") == "img"
    assert drawing.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert len(desc.text or "") > 2 * len(title.text or "") > 20
    assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")
    assert drawing.find(f".//{SVG}script") is None


def test_every_alert_is_in_the_runbook_of_the_site(site: Path) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8"))
    named = [rule["annotations"]["runbook"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    headings = dict(HEADING.findall((site / "operate.html").read_text(encoding="utf-8")))
    assert {name.partition("#")[2] for name in named} <= set(headings)
