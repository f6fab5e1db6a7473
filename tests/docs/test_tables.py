"""The tables of figures that follow from the code are right: sizes of slots and prefixes, statuses of errors."""

import re

import pytest

from server.errors import ERRORS, INTERNAL, ROUTER_ERROR_TYPES
from server.protocol import ERROR_TYPES
from tests.docs.pages import ROOT

SHAPES = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280), "gpt2-xl": (48, 1600)}
KIB, GIB = 1 << 10, 1 << 30
CONTEXT = 1024


def rows_of(page: str, header: str) -> dict[str, list[str]]:
    """The table below this header, by its first column."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    begin = lines.index(header) + 2
    rows = []
    while lines[begin + len(rows)].startswith("|"):
        rows.append([cell.strip() for cell in lines[begin + len(rows)].strip("|").split("|")])
    return {first: rest for first, *rest in rows}


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def token_bytes(layers: int, width: int, item: int) -> int:
    return 2 * layers * width * item


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_slots_in_a_gibibyte(name: str, shape: tuple[int, int]) -> None:
    rows = rows_of(
        "operate.md", "| backbone | weights, bf16 | a token | a full slot of 1,024 tokens | slots in 1 GiB |"
    )
    (row,) = [rest for first, rest in rows.items() if first.split(" ")[0] == name]
    token = token_bytes(*shape, item=2)
    assert [numbers(cell)[0] for cell in row[1:]] == [
        token // KIB,
        token * CONTEXT // KIB // KIB,
        GIB // (token * CONTEXT),
    ]


@pytest.mark.parametrize(("name", "shape"), SHAPES.items())
def test_tasks_in_a_gibibyte(name: str, shape: tuple[int, int]) -> None:
    rows = rows_of("operate.md", "| tasks in 1 GiB, float32 | 5 virtual tokens | 10 | 20 | 100 |")
    (first, row), *_ = [(first, rest) for first, rest in rows.items() if first.split(" ")[0] == name]
    token = token_bytes(*shape, item=4)
    assert numbers(first)[-1] == token // KIB
    assert [numbers(cell)[0] for cell in row] == [GIB // (num_tokens * token) for num_tokens in (5, 10, 20, 100)]


def test_every_status_and_error_type_is_in_the_table() -> None:
    rows = rows_of("api.md", "| status | `error_type` | when |")
    told = {(int(status), name) for status, (names, _) in rows.items() for name in re.findall(r"`(\w+)`", names)}
    known = {(kind.status, kind.error_type) for kind in [*ERRORS.values(), INTERNAL]}
    assert told == known | set(ROUTER_ERROR_TYPES.items()) | set(ERROR_TYPES.items())
