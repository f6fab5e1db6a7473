"""Every route and body of the HTTP API, written into api.md while the site is built, from the server's own document.

Run by mkdocs on each page's Markdown. Knows OpenAPI 3.1 as far as the server's document uses it. Knows nothing of what
the routes do.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from server.app import create_app
from server.settings import Settings

PAGE = "api.md"
PLACE = "<!-- the site has every route and every body here -->"
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "≥ {} long",
    "maxLength": "≤ {} long",
    "minItems": "≥ {} of them",
    "maxItems": "≤ {} of them",
    "minProperties": "≥ {} of them",
    "maxProperties": "≤ {} of them",
    "pattern": "`{}`",
}
Json = Mapping[str, Any]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(PLACE, reference(create_app(Settings()).openapi()))


def reference(document: Json) -> str:
    """The whole document as Markdown: the routes by their tags, then each schema once."""
    schemas = document["components"]["schemas"]
    return "\n".join([*routes(document["paths"]), "## Bodies", "", *bodies(schemas)])


def routes(paths: Json) -> Iterator[str]:
    operations = [(path, method, each) for path, methods in paths.items() for method, each in methods.items()]
    for tag in dict.fromkeys(tag_of(operation) for _, _, operation in operations):
        yield from (f"## Routes: {tag}", "")
        for path, method, operation in operations:
            if tag_of(operation) == tag:
                yield from route(path, method, operation)


def tag_of(operation: Json) -> str:
    return str(operation.get("tags", ["page"])[0])


def route(path: str, method: str, operation: Json) -> Iterator[str]:
    is_open = "" if operation.get("security") else "Asks for no key."
    said = [f"**{operation['summary']}.**", one_line(operation.get("description", "")), is_open]
    yield from (f"### {method.upper()} {path}", "", " ".join(filter(None, said)), "")
    if parameters := operation.get("parameters"):
        yield from ("| parameter | in | what |", "|---|---|---|")
        for each in parameters:
            yield f"| `{each['name']}` | {each['in']} | {what(each['schema'], each.get('required', False))} |"
        yield ""
    if body := operation.get("requestBody"):
        yield from (f"Body: {contents(body['content'])}.", "")
    yield from answers(operation["responses"])


def answers(responses: Json) -> Iterator[str]:
    """Those that succeed a line each; errors in one line for each form that they have, since they are many."""
    errors: dict[str, list[str]] = {}
    for status, response in responses.items():
        content = contents(response.get("content", {}))
        if status < "400":
            yield from (f"Answer {status}: {content or 'no body'}.", "")
        else:
            errors.setdefault(content, []).append(status)
    for content, statuses in errors.items():
        yield from (f"Errors: {', '.join(statuses)}; {content}.", "")


def bodies(schemas: Json) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield from (f"### {name}", "")
        if description := schema.get("description"):
            yield from (one_line(description), "")
        if properties := schema.get("properties"):
            required = schema.get("required", [])
            yield from ("| field | what |", "|---|---|")
            yield from (f"| `{field}` | {what(each, field in required)} |" for field, each in properties.items())
            yield ""
        else:
            yield from (f"{kind(schema).capitalize()}.", "")


def what(schema: Json, is_required: bool) -> str:
    """A cell of a table: the type and its bounds, whether it has to be there, and what it is."""
    parts = [kind(schema)]
    if is_required:
        parts.append("required")
    elif schema.get("default") is not None:
        parts.append(f"default `{schema['default']}`")
    if description := schema.get("description"):
        parts.append(one_line(description))
    return "; ".join(parts).replace("|", "\\|")


def contents(content: Json) -> str:
    """What a body may be. FastAPI adds JSON without a schema to what a route says itself; that is left out."""
    told = {media_type: media for media_type, media in content.items() if media.get("schema")} or content
    return " or ".join(
        f"{kind(media['schema'])} as `{media_type}`" if media.get("schema") else f"`{media_type}`"
        for media_type, media in told.items()
    )


def kind(schema: Json) -> str:
    """A schema in few words, bounds included."""
    bounds = [form.format(schema[name]) for name, form in BOUNDS.items() if name in schema]
    return bare_kind(schema) + (f" ({', '.join(bounds)})" if bounds else "")


def bare_kind(schema: Json) -> str:
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": choices} | {"oneOf": choices}:
            return " or ".join(kind(choice) for choice in choices)
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return one_of(values)
        case {"type": "array", "prefixItems": items}:
            return "list of " + ", ".join(kind(item) for item in items)
        case {"type": "array", "items": items}:
            return f"list of {kind(items)}"
        case {"type": "object", "additionalProperties": dict(values)} if values:
            return f"object of {kind(values)}"
        case {"type": "string", "format": text_form}:
            return f"string as {text_form}"
        case {"type": str(name)}:
            return name
    return "anything"


def one_of(values: Iterable[object]) -> str:
    return " or ".join(f"`{value}`" for value in values)


def one_line(text: str) -> str:
    return " ".join(text.split())
