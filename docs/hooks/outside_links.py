"""Links from a page to what is not in docs/, as the site shows them: the path as code, since no such page is there.

Run by mkdocs on each page's Markdown. Knows links. Knows nothing of what they lead to.
"""

import re
from typing import Any

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Blocks of code stay as they are."""
    parts = FENCED.split(markdown)  # what stands between blocks, and every second one a block
    parts[::2] = [OUTSIDE.sub(as_text, part) for part in parts[::2]]
    return "".join(parts)


def as_text(link: re.Match[str]) -> str:
    """The link's text, with the path behind it where the text says something else."""
    text, path = link[1], link[2].partition("#")[0]
    is_the_path = path.endswith(text.strip("`"))
    return f"`{path}`" if is_the_path else f"{text} (`{path}`)"
