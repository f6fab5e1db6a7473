"""Which replica gets a request.

Knows which replicas are up, and how many requests each has open. Knows nothing of what a request costs.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

import numpy as np

from benchmarks.fleet.load import Tasks
from benchmarks.fleet.replica import Replica

POINTS_PER_REPLICA = 100  # on the ring, so that all have about as many tasks


class Router(Protocol):
    def choose(self, task: int, replicas: Sequence[Replica]) -> Replica | None:
        """One that is up; None where there is none."""

    def tasks_of(self, number: int) -> Tasks:
        """Those that the replica of this number is asked for while all are up."""


MakeRouter = Callable[[int, int, np.random.Generator], Router]  # for so many tasks and replicas


class Anywhere:
    """Among `num_choices` replicas, drawn at random, the one with the fewest open requests.

    With one choice that is at random; two are what Ray Serve does, and as good as HAProxy's leastconn.
    """

    def __init__(self, num_choices: int, num_tasks: int, num_replicas: int, random: np.random.Generator) -> None:
        self._num_choices = num_choices
        self._tasks: Tasks = np.arange(num_tasks)
        self._random = Random(int(random.integers(2**32)))  # which draws one of few in a tenth of numpy's time

    def choose(self, task: int, replicas: Sequence[Replica]) -> Replica | None:
        up = [replica for replica in replicas if replica.is_up]
        drawn = self._random.sample(up, min(self._num_choices, len(up)))
        return min(drawn, key=lambda replica: replica.num_open, default=None)

    def tasks_of(self, number: int) -> Tasks:
        return self._tasks


class Affinity:
    """Each task has its replica, by consistent hashing; where that one is down it is the next on the ring.

    And where it has more than `max_load` of the mean number of open requests: consistent hashing with bounded loads
    (Mirrokni, Thorup, Zadimoghaddam, 2018), HAProxy's `hash-balance-factor`. `math.inf` is plain consistent hashing.
    A hash is as good as a random number, so places on the ring are drawn.
    """

    def __init__(self, max_load: float, num_tasks: int, num_replicas: int, random: np.random.Generator) -> None:
        self._max_load = max_load
        points = random.random(num_replicas * POINTS_PER_REPLICA)
        order = np.argsort(points)
        self._points: list[float] = points[order].tolist()
        self._owners: list[int] = (order // POINTS_PER_REPLICA).tolist()
        self._places = random.random(num_tasks)
        after = np.searchsorted(points[order], self._places, "right")
        self._owner_of = (order // POINTS_PER_REPLICA)[after % len(order)]

    def choose(self, task: int, replicas: Sequence[Replica]) -> Replica | None:
        most = self._most(replicas)
        first = bisect(self._points, self._places[task])
        for point in range(first, first + len(self._owners)):
            replica = replicas[self._owners[point % len(self._owners)]]
            if replica.is_up and replica.num_open < most:
                return replica
        return None

    def tasks_of(self, number: int) -> Tasks:
        return np.flatnonzero(self._owner_of == number)

    def _most(self, replicas: Sequence[Replica]) -> float:
        if math.isinf(self._max_load):
            return math.inf
        open_of_each = [replica.num_open for replica in replicas if replica.is_up]
        return math.ceil(self._max_load * (sum(open_of_each) + 1) / max(1, len(open_of_each)))
