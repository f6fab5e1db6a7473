"""The tables of docs/scaling.md, written from the figures, so that the page says what the last run said.

Knows names of figures and Markdown. Knows nothing of how the figures came about.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.fleet.costs import Work
from benchmarks.fleet.questions import EXPONENTS, GIBIBYTES, NUM_REPLICAS, NUMS_LOST, ROUTERS, ROUTERS_AT_LOSS

Figures = Mapping[str, float]
MARKED = re.compile(r"(<!-- (\w+): written by benchmarks.fleet_sim -->\n).*?(<!-- end -->)", re.DOTALL)


def rewrite(page: Path, figures: Figures) -> None:
    """Put each table between its marks, `<!-- NAME: written by benchmarks.fleet_sim -->` and `<!-- end -->`."""
    made = {"costs": costs(figures), "trust": trust(figures), "spreads": spreads(figures), "losses": losses(figures)}
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKED.sub(lambda mark: f"{mark[1]}\n{made[mark[2]]}\n{mark[3]}", text), encoding="utf-8")


def spread_name(popularity: str, gibibytes: int, router: str) -> str:
    return f"{popularity}_{gibibytes}_gib_{router}".replace(" ", "_")


def loss_name(num_lost: int, router: str) -> str:
    return f"lost_{num_lost}_{router}".replace(" ", "_")


def costs(figures: Figures) -> str:
    capacity = figures["capacity_requests_per_second"]
    rows = [
        *(
            (f"a step of {num} row{'s' * (num > 1)}", f"{figures[f'step_seconds_{num}'] * 1e3:.1f} ms")
            for num in (1, 8, 32, 64)
        ),
        ("a token of a prompt", f"{figures['prefill_seconds_per_token'] * 1e3:.2f} ms"),
        ("HTTP and text, a request", f"{figures['request_seconds'] * 1e3:.1f} ms"),
        ("checking a prefix that was not in memory, and handing it over", f"{figures['load_seconds'] * 1e3:.1f} ms"),
        (f"{NUM_REPLICAS} replicas, all slots busy", f"{capacity:.0f} requests/s"),
        ("the same in new tokens", f"{capacity * Work().num_new_tokens:,.0f} tokens/s"),
        ("a million such requests", f"{NUM_REPLICAS * 1e6 / capacity / 3600:.0f} hours of a core"),
    ]
    return table(("of one core", "fitted"), rows)


def trust(figures: Figures) -> str:
    """What was not measured says so."""

    def told(name: str, precision: str) -> str:
        return f"{figures[name]:{precision}}" if name in figures else "not measured yet"

    rows = [
        (label, told(f"predicted_two_replicas_{name}", ".2f"), told(f"measured_two_replicas_{name}", ".2f"))
        for label, name in (
            ("two replicas, 128 clients, requests/s", "requests_per_second"),
            ("half of the callers have their answer within, s", "p50_seconds"),
        )
    ]
    return table(("", "simulated", "measured"), [*rows, ("`simulator_error`", told("simulator_error", ".1%"), "")])


def spreads(figures: Figures) -> str:
    rows = []
    for popularity in EXPONENTS:
        for router in ROUTERS:
            names = [spread_name(popularity, gibibytes, router) for gibibytes in GIBIBYTES]
            found = (f"{figures[f'hit_rate_{name}']:.2f}" for name in names)
            rates = (f"{figures[f'{rate}_{names[0]}']:.2f}" for rate in ("lookup_rate", "refused_rate"))
            p99 = f"{figures[f'p99_{names[0]}']:.1f} s"
            rows.append((popularity, router, *found, *rates, p99))
    found_in = (f"in memory, {gibibytes} GiB each" for gibibytes in GIBIBYTES)
    first = f"{GIBIBYTES[0]} GiB"
    return table(("tasks", "router", *found_in, f"looked up, {first}", f"429, {first}", f"p99, {first}"), rows)


def losses(figures: Figures) -> str:
    rows = []
    for num_lost in NUMS_LOST:
        for router in ROUTERS_AT_LOSS:
            name = loss_name(num_lost, router)
            seconds = (f"{figures[f'{name}_{moment}']:.1f} s" for moment in ("p99_before", "p99_during"))
            normal = f"{figures[f'{name}_seconds_to_normal']:.0f} s"
            counts = (f"{figures[f'{name}_{outcome}']:.0f}" for outcome in ("failed", "refused"))
            rows.append((str(num_lost), router, *counts, *seconds, normal))
    return table(("lost", "router", "failed", "429", "p99 before", "p99 until they are back", "normal after"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
