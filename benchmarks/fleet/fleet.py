"""A fleet's life: replicas behind a router, a load, and losses; and what came of the requests.

Knows who is put together with whom. Knows nothing of what is made of the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from simpy import Environment

from benchmarks.fleet.costs import ReplicaCosts, Work
from benchmarks.fleet.load import Popularity, closed_loop, open_loop
from benchmarks.fleet.replica import Outcome, Replica, Request, Wait
from benchmarks.fleet.router import MakeRouter


@dataclass(frozen=True, slots=True)
class Loss:
    """At this moment the first `num_replicas` are gone."""

    at: float
    num_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All that a run depends on: the same fleet has the same life each time."""

    costs: ReplicaCosts
    num_replicas: int
    popularity: Popularity
    cache_bytes: int
    router: MakeRouter
    work: Work = field(default_factory=Work)
    seed: int = 0

    def open(self, per_second: float, seconds: float, loss: Loss | None = None) -> "Told":
        """Arrivals at random until `seconds`, on replicas that have long been up; all that came is answered."""
        life = _Life(self)
        life.env.process(open_loop(life.env, life.ask, life.tasks, per_second, seconds, life.random))
        if loss is not None:
            life.env.process(life.lose(loss))
        return life.told()

    def closed(self, num_clients: int, num_rounds: int) -> "Told":
        """So many clients, who begin together; each asks anew once it is answered, so many times."""
        life = _Life(self)
        for _ in range(num_clients):
            life.env.process(closed_loop(life.env, life.ask, life.tasks, num_rounds))
        return life.told()


@dataclass(frozen=True, slots=True)
class Told:
    """Requests, in the order of their ends."""

    requests: Sequence[Request]

    def arrived(self, begin: float, end: float) -> "Told":
        return Told([each for each in self.requests if begin <= each.arrived_at < end])

    def share(self, outcome: Outcome) -> float:
        return sum(each.outcome is outcome for each in self.requests) / len(self.requests)

    @property
    def answered(self) -> list[Request]:
        return [each for each in self.requests if each.outcome is Outcome.ANSWERED]

    @property
    def hit_rate(self) -> float:
        answered = self.answered
        return sum(not each.was_cold for each in answered) / len(answered)

    @property
    def lookups_per_request(self) -> float:
        return sum(each.was_looked_up for each in self.requests) / len(self.requests)

    def answer_seconds(self, percent: float) -> float:
        return float(np.percentile([each.ended_at - each.arrived_at for each in self.answered], percent))

    def first_token_seconds(self, percent: float) -> float:
        return float(np.percentile([each.first_token_at - each.arrived_at for each in self.answered], percent))

    @property
    def requests_per_second(self) -> float:
        """Of a run from its beginning, where all that was asked was answered."""
        return len(self.answered) / max(each.ended_at for each in self.requests)


class _Life:
    """One run."""

    def __init__(self, fleet: Fleet) -> None:
        self.env = Environment()
        self.random = np.random.default_rng(fleet.seed)
        self.tasks = fleet.popularity.tasks(self.random)
        self._router = fleet.router(fleet.popularity.num_tasks, fleet.num_replicas, self.random)
        self._replicas = [self._replica(fleet, number) for number in range(fleet.num_replicas)]
        self._requests: list[Request] = []

    def ask(self, request: Request) -> Wait:
        replica = self._router.choose(request.task, self._replicas)
        if replica is not None:
            yield from replica.answer(request)
        request.ended_at = self.env.now
        self._requests.append(request)

    def lose(self, loss: Loss) -> Wait:
        yield self.env.timeout(loss.at)
        for replica in self._replicas[: loss.num_replicas]:
            self.env.process(replica.lose())

    def told(self) -> Told:
        self.env.run()  # until nothing happens any more
        return Told(self._requests)

    def _replica(self, fleet: Fleet, number: int) -> Replica:
        among = self._router.tasks_of(number)
        warm = fleet.popularity.used_last(among, fleet.cache_bytes // fleet.costs.prefix_bytes, self.random)
        return Replica(self.env, fleet.costs, fleet.work, fleet.cache_bytes, warm)
