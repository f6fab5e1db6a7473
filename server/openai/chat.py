"""A conversation as one prompt, by a task's own three templates.

Knows templates. Knows nothing of tokens. Contents are put in literally.
"""

from collections.abc import Mapping, Sequence

from server.openai.schemas import Message
from server.schemas import CONTENT_PLACE

ROLES = {"developer": "system"}  # OpenAI's newer name for it


def render_chat(templates: Mapping[str, str], messages: Sequence[Message]) -> str:
    """Every message in its role's template, then the assistant's up to the place of its answer."""
    written = [templates[ROLES.get(each.role, each.role)].replace(CONTENT_PLACE, each.text) for each in messages]
    asks, _, _ = templates["assistant"].partition(CONTENT_PLACE)
    return "".join([*written, asks])
