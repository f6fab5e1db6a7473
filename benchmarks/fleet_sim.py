"""A hundred replicas and a million tasks, simulated from what one replica was measured to do.

A replica has slots, a queue, steps that give each running row a token, a cache of prefixes, a bucket behind it, and
refuses as the server does. Its costs are fitted to what one real replica answered to 1, 8, 32 and 64 clients, and what
was used beside its engine (the first FILE.json, by `benchmarks.replicas`); what misses cost and how long a start takes
are in tasks.json and operations.json beside it. Two simulated replicas are then held against the two real ones, where
the file has them; the fit does not see their figures:

- `simulator_error`: |predicted - measured| / measured requests per second of two replicas.

Then the fleet, at 0.8 of what it answers with all slots busy and all prefixes in memory; requests come at random. For
each popularity, memory for prefixes and router, of 40 seconds on replicas whose caches have long been in use:

- `hit_rate_…`: requests whose prefix was in memory;
- `lookup_rate_…`: those for which the registry was asked;
- `refused_rate_…`: those that got 429;
- `p99_…`: seconds of a whole answer.

And losses at 0.7 of it, `lost_{1,10}_…`: requests that failed and that were refused, the 99th percentile of whole
answers before and until the lost replicas are up again, and the seconds from the loss until it is, and stays, within a
tenth of the worst before.

    python -m benchmarks.fleet_sim --calibration docs/replicas.json [--out FILE.json]

Minutes on one core; no model runs. Beside the other FILE.json it draws FILE.png, and writes its tables into FILE.md
where there is one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.fleet.chart import draw
from benchmarks.fleet.costs import ReplicaCosts, Work, fit
from benchmarks.fleet.page import loss_name, rewrite, spread_name
from benchmarks.fleet.questions import (
    EXPONENTS,
    GIBIBYTES,
    NUMS_LOST,
    ROUTERS,
    ROUTERS_AT_LOSS,
    Recovery,
    Spread,
    capacity,
    recoveries,
    spreads,
    two_replicas,
)
from benchmarks.report import finish_table

NUMS_OF_CLIENTS = (1, 8, 32, 64)  # of the one replica
NUM_CLIENTS_OF_TWO = 128
NUM_TASKS_OF_TWO = 64
NUM_ROUNDS_OF_TWO = 3  # as benchmarks.replicas asks where nothing is said
REQUESTS, P50 = "two_replicas_requests_per_second", "two_replicas_p50_seconds"
PREFIX_BYTES = 10 * 2 * 12 * 768 * 4  # 10 virtual tokens of GPT-2 small in float32: docs/operate.md
# Amazon's guidelines for the performance of S3 tell 100 to 200 ms for a small object.
COLD_LOAD_SECONDS = 0.15

Figures = dict[str, float]


def figures_of(path: Path) -> Figures:
    figures: Figures = json.loads(path.read_text())["figures"]
    return figures


def calibrate(measured: Figures, folder: Path) -> ReplicaCosts:
    """The one replica's costs; `folder` has what was measured of misses and starts."""
    return fit(
        {num: measured[f"one_replica_requests_per_second_{num}"] for num in NUMS_OF_CLIENTS},
        Work(),
        request_seconds=measured["other_processor_seconds_per_request"],
        misses_vs_hits=figures_of(folder / "tasks.json")["distinct_10000_vs_one_task"],
        cold_load_seconds=COLD_LOAD_SECONDS,
        start_seconds=figures_of(folder / "operations.json")["image_ready_seconds"],
        prefix_bytes=PREFIX_BYTES,
    )


def hold_against(measured: Figures, costs: ReplicaCosts) -> Figures:
    """Print what is predicted of two replicas beside what was measured, where it was."""
    told = two_replicas(costs, NUM_CLIENTS_OF_TWO, NUM_TASKS_OF_TWO, NUM_ROUNDS_OF_TWO)
    predicted = {REQUESTS: told.requests_per_second, P50: told.answer_seconds(50)}
    real = {name: measured[name] for name in predicted if name in measured}
    table = Table("two replicas, 128 clients", "predicted", "measured")
    for name, value in predicted.items():
        table.add_row(name, f"{value:.3g}", f"{real[name]:.3g}" if name in real else "")
    Console().print(table)
    error = {"simulator_error": abs(predicted[REQUESTS] / real[REQUESTS] - 1)} if REQUESTS in real else {}
    return error | {
        **{f"predicted_{name}": value for name, value in predicted.items()},
        **{f"measured_{name}": value for name, value in real.items()},
    }


def fitted(costs: ReplicaCosts) -> Figures:
    steps = {f"step_seconds_{num}": seconds for num, seconds in costs.step_seconds}
    return steps | {
        "prefill_seconds_per_token": costs.prefill_seconds_per_token,
        "request_seconds": costs.request_seconds,
        "load_seconds": costs.load_seconds,
        "capacity_requests_per_second": capacity(costs.crowded(), Work()),
    }


def spread_table(rows: Sequence[Spread]) -> Table:
    table = Table("popularity", "GiB", "router", "in memory", "looked up", "429", "first token", "p99", "answer", "p99")
    for row in rows:
        rates = (f"{rate:.3f}" for rate in (row.hit_rate, row.lookup_rate, row.refused_rate))
        seconds = (f"{each:.2f}" for each in (row.first_token_p50, row.first_token_p99, row.p50, row.p99))
        table.add_row(row.popularity, str(row.gibibytes), row.router, *rates, *seconds)
    return table


def loss_table(rows: Sequence[Recovery]) -> Table:
    table = Table("lost", "router", "failed", "429", "p99 before", "p99 during", "normal after", "in memory then")
    for row in rows:
        table.add_row(
            str(row.num_lost),
            row.router,
            str(row.num_failed),
            str(row.num_refused),
            f"{row.p99_before:.2f}",
            f"{row.p99_during:.2f}",
            f"{row.seconds_to_normal:.0f}",
            f"{row.hit_rate_after:.3f}",
        )
    return table


def figures(spread: Sequence[Spread], lost: Sequence[Recovery]) -> Figures:
    told: Figures = {}
    for row in spread:
        name = spread_name(row.popularity, row.gibibytes, row.router)
        told[f"hit_rate_{name}"] = row.hit_rate
        told[f"lookup_rate_{name}"] = row.lookup_rate
        told[f"refused_rate_{name}"] = row.refused_rate
        told[f"p99_{name}"] = row.p99
    for each in lost:
        name = loss_name(each.num_lost, each.router)
        told[f"{name}_failed"] = each.num_failed
        told[f"{name}_refused"] = each.num_refused
        told[f"{name}_p99_before"] = each.p99_before
        told[f"{name}_p99_during"] = each.p99_during
        told[f"{name}_seconds_to_normal"] = each.seconds_to_normal
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="A simulated fleet")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    measured = figures_of(args.calibration)
    one = calibrate(measured, args.calibration.parent)
    costs = one.crowded()  # two replicas of a thread each leave none of two cores to spare; nor does a fleet
    told = fitted(one) | hold_against(measured, costs)
    num_runs = len(EXPONENTS) * len(GIBIBYTES) * len(ROUTERS)
    spread = list(track(spreads(costs), "a million tasks", total=num_runs))
    lost = list(track(recoveries(costs), "losses", total=len(NUMS_LOST) * len(ROUTERS_AT_LOSS)))
    Console().print(loss_table(lost))
    told |= figures(spread, lost)
    if args.out is not None:
        draw(args.out.with_suffix(".png"), spread, lost)
        if (page := args.out.with_suffix(".md")).exists():
            rewrite(page, told)
    finish_table("fleet_sim", spread_table(spread), told, args.out)


if __name__ == "__main__":
    main()
