"""Made-up JSON schemas whose values are short, so that most texts come to their end."""

import random
from typing import Any


def random_object(chooser: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema of an object with a few properties, nested up to `depth`."""
    names = chooser.sample(["name", "age", "b", "tag s", 'quo"te', "né", "a\\b"], chooser.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _random_schema(chooser, depth - 1) for name in names},
        "required": [name for name in names if chooser.random() < 0.7],
        "additionalProperties": False,
    }


def _random_schema(chooser: random.Random, depth: int) -> dict[str, Any]:
    makers = [_string, _pattern, _integer, _number, _enum, _constant, _boolean]
    if depth > 0:
        makers += [random_object, _array, _tuple, _any_of]  # type: ignore[list-item]
    maker = chooser.choice(makers)
    return maker(chooser, depth)  # type: ignore[call-arg]


def _string(chooser: random.Random, _: int) -> dict[str, Any]:
    shortest = chooser.randint(0, 3)
    return {"type": "string", "minLength": shortest, "maxLength": shortest + chooser.randint(0, 4)}


def _pattern(chooser: random.Random, _: int) -> dict[str, Any]:
    return {"type": "string", "pattern": chooser.choice(["^[a-c]{2}$", "^(yes|no)$", "^[0-9]{1,3}-[A-Z]$", "^é+x?$"])}


def _integer(chooser: random.Random, _: int) -> dict[str, Any]:
    least = chooser.randint(-50, 50)
    return {"type": "integer", "minimum": least, "maximum": least + chooser.randint(0, 200)}


def _number(chooser: random.Random, _: int) -> dict[str, Any]:
    return {"type": "number", "exclusiveMinimum": 0, "maximum": chooser.choice([1, 2.5, 100])}


def _enum(chooser: random.Random, _: int) -> dict[str, Any]:
    return {"enum": chooser.sample(["red", "green", 7, None, True, "\n", '"'], 3)}


def _constant(chooser: random.Random, _: int) -> dict[str, Any]:
    return {"const": chooser.choice(["fixed", 3, {"x": [1, 2]}])}


def _boolean(chooser: random.Random, _: int) -> dict[str, Any]:
    return {"type": chooser.choice(["boolean", "null", ["boolean", "null"]])}


def _array(chooser: random.Random, depth: int) -> dict[str, Any]:
    fewest = chooser.randint(0, 2)
    return {"type": "array", "items": _random_schema(chooser, depth - 1), "minItems": fewest, "maxItems": fewest + 1}


def _tuple(chooser: random.Random, depth: int) -> dict[str, Any]:
    schemas = [_random_schema(chooser, depth - 1) for _ in range(2)]
    return {"type": "array", "prefixItems": schemas, "items": False, "minItems": 2}


def _any_of(chooser: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_random_schema(chooser, depth - 1) for _ in range(2)]}
