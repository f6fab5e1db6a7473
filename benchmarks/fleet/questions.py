"""What a hundred replicas are asked: how tasks, memory and routers go together, and what a loss does.

Knows fleets and loads. Knows nothing of tables and charts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.fleet.costs import ReplicaCosts, Work
from benchmarks.fleet.fleet import Fleet, Loss, Told
from benchmarks.fleet.load import Popularity
from benchmarks.fleet.replica import Outcome
from benchmarks.fleet.router import Affinity, Anywhere, MakeRouter

NUM_REPLICAS = 100
NUM_TASKS = 1_000_000
EXPONENTS = {"uniform": 0.0, "zipf 0.8": 0.8, "zipf 1.0": 1.0, "zipf 1.2": 1.2}
GIBIBYTES = (1, 4, 16)  # of prefixes, in one replica
LOAD = 0.8  # of what the replicas answer with all slots busy and all prefixes in memory
LOAD_AT_LOSS = 0.7
SETTLING_SECONDS = 20.0
SECONDS = 60.0  # of which the first are left out
LOSS = 40.0  # the moment
SECONDS_WITH_LOSS = 160.0
WINDOW_SECONDS = 5.0
NORMAL = 1.1  # of the worst window before the loss

ROUTERS: dict[str, MakeRouter] = {
    "random": partial(Anywhere, 1),
    "fewest of two": partial(Anywhere, 2),
    "affinity": partial(Affinity, math.inf),
    "bounded affinity": partial(Affinity, 1.25),
}
ROUTERS_AT_LOSS = ("fewest of two", "bounded affinity")
NUMS_LOST = (1, 10)


@dataclass(frozen=True, slots=True)
class Spread:
    """One row of the table, of the requests that came between the settling and the end. Rates are of requests."""

    popularity: str
    gibibytes: int
    router: str
    hit_rate: float
    lookup_rate: float
    refused_rate: float
    first_token_p50: float
    first_token_p99: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Window:
    """Requests that came within `WINDOW_SECONDS` from `begin`, seconds from the loss; `p99` is of whole answers."""

    begin: float
    p99: float
    is_whole: bool  # all were answered


@dataclass(frozen=True, slots=True)
class Recovery:
    """A run with a loss. Seconds; `windows` is what the chart shows."""

    num_lost: int
    router: str
    num_failed: int
    num_refused: int
    p99_before: float
    p99_during: float  # until the lost ones were up again
    hit_rate_after: float  # from then to the end
    windows: Sequence[Window]

    @property
    def seconds_to_normal(self) -> float:
        """From the loss to the end of the last window that was not as those before the loss."""
        before = [window for window in self.windows if window.begin < 0]
        most = NORMAL * max(window.p99 for window in before)
        odd = [each.begin for each in self.windows if each.begin >= 0 and not (each.is_whole and each.p99 <= most)]
        return max(odd) + WINDOW_SECONDS if odd else 0.0


def capacity(costs: ReplicaCosts, work: Work) -> float:
    """Requests per second of all replicas, with every slot busy and every prefix in memory."""
    return NUM_REPLICAS * costs.requests_per_second(costs.max_num_seqs, work)


def two_replicas(costs: ReplicaCosts, num_clients: int, num_tasks: int, num_rounds: int) -> Told:
    """Behind a proxy that asks the one with fewer open requests; their tasks are all in memory."""
    popularity = Popularity(num_tasks, 0.0)
    fleet = Fleet(
        costs=costs,
        num_replicas=2,
        popularity=popularity,
        cache_bytes=num_tasks * costs.prefix_bytes,
        router=ROUTERS["fewest of two"],
    )
    return fleet.closed(num_clients, num_rounds)


def spreads(costs: ReplicaCosts) -> Iterator[Spread]:
    for name, exponent in EXPONENTS.items():
        popularity = Popularity(NUM_TASKS, exponent)
        for gibibytes in GIBIBYTES:
            for router in ROUTERS:
                fleet = _fleet(costs, popularity, gibibytes, router)
                told = fleet.open(LOAD * capacity(costs, fleet.work), SECONDS).arrived(SETTLING_SECONDS, SECONDS)
                yield Spread(
                    popularity=name,
                    gibibytes=gibibytes,
                    router=router,
                    hit_rate=told.hit_rate,
                    lookup_rate=told.lookups_per_request,
                    refused_rate=told.share(Outcome.REFUSED),
                    first_token_p50=told.first_token_seconds(50),
                    first_token_p99=told.first_token_seconds(99),
                    p50=told.answer_seconds(50),
                    p99=told.answer_seconds(99),
                )


def recoveries(costs: ReplicaCosts) -> Iterator[Recovery]:
    popularity = Popularity(NUM_TASKS, 1.0)
    for num_lost in NUMS_LOST:
        for router in ROUTERS_AT_LOSS:
            fleet = _fleet(costs, popularity, GIBIBYTES[0], router)
            per_second = LOAD_AT_LOSS * capacity(costs, fleet.work)
            told = fleet.open(per_second, SECONDS_WITH_LOSS, Loss(LOSS, num_lost))
            yield _recovery(num_lost, router, told, LOSS + costs.start_seconds)


def _fleet(costs: ReplicaCosts, popularity: Popularity, gibibytes: int, router: str) -> Fleet:
    return Fleet(
        costs=costs,
        num_replicas=NUM_REPLICAS,
        popularity=popularity,
        cache_bytes=gibibytes << 30,
        router=ROUTERS[router],
    )


def _recovery(num_lost: int, router: str, told: Told, up_again_at: float) -> Recovery:
    refused_or_failed = [each.outcome for each in told.requests if each.outcome is not Outcome.ANSWERED]
    num_windows = round((SECONDS_WITH_LOSS - SETTLING_SECONDS) / WINDOW_SECONDS)
    begins = [SETTLING_SECONDS + number * WINDOW_SECONDS for number in range(num_windows)]
    return Recovery(
        num_lost=num_lost,
        router=router,
        num_failed=refused_or_failed.count(Outcome.FAILED),
        num_refused=refused_or_failed.count(Outcome.REFUSED),
        p99_before=told.arrived(SETTLING_SECONDS, LOSS - WINDOW_SECONDS).answer_seconds(99),
        p99_during=told.arrived(LOSS, up_again_at).answer_seconds(99),
        hit_rate_after=told.arrived(up_again_at, SECONDS_WITH_LOSS).hit_rate,
        windows=[_window(told.arrived(begin, begin + WINDOW_SECONDS), begin - LOSS) for begin in begins],
    )


def _window(told: Told, begin: float) -> Window:
    return Window(begin, told.answer_seconds(99), told.share(Outcome.ANSWERED) == 1)
