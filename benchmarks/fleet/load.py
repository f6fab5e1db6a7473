"""Who asks for what, and when: tasks by their popularity, clients that wait for answers, arrivals that do not.

Knows simulated time and requests. Knows nothing of replicas.
"""

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
from simpy import Environment

from benchmarks.fleet.replica import Outcome, Request, Wait

Ask = Callable[[Request], Wait]
Tasks = npt.NDArray[np.int64]
RETRY_SECONDS = 1.0  # what a 429 asks a client to wait
_NUM_DRAWN = 100_000  # at a time


class Popularity:
    """Tasks 0 … `num_tasks` - 1, the k-th in proportion to 1 / (k + 1) ** exponent; with 0 all alike."""

    def __init__(self, num_tasks: int, exponent: float) -> None:
        weights = np.arange(1, num_tasks + 1, dtype=float) ** -exponent
        self._bounds = np.cumsum(weights / weights.sum())
        self._weights = weights.astype(np.float32)  # a third less time, where each replica draws a million ages

    @property
    def num_tasks(self) -> int:
        return len(self._weights)

    def tasks(self, random: np.random.Generator) -> Iterator[int]:
        """Without end."""
        last = self.num_tasks - 1  # the sum of the chances may end just below 1
        draws = (np.searchsorted(self._bounds, random.random(_NUM_DRAWN)) for _ in repeat(None))
        return chain.from_iterable(np.minimum(drawn, last).tolist() for drawn in draws)

    def used_last(self, among: Tasks, num_tasks: int, random: np.random.Generator) -> list[int]:
        """What a cache for so many prefixes holds after a long life of requests for these tasks, the last used last.

        The time since a task's last use is exponential with its rate, and the cache holds those with the shortest.
        """
        ages = random.standard_exponential(len(among), dtype=np.float32) / self._weights[among]
        if num_tasks < len(among):
            youngest = np.argpartition(ages, num_tasks)[:num_tasks]
            among, ages = among[youngest], ages[youngest]
        used: list[int] = among[np.argsort(-ages)].tolist()
        return used


def open_loop(
    env: Environment, ask: Ask, tasks: Iterator[int], per_second: float, seconds: float, random: np.random.Generator
) -> Wait:
    """Requests at their own moments, at random, until `seconds`."""
    while env.now < seconds:
        env.process(ask(Request(next(tasks), env.now)))
        yield env.timeout(random.exponential(1 / per_second))


def closed_loop(env: Environment, ask: Ask, tasks: Iterator[int], num_rounds: int) -> Wait:
    """One client, who asks anew once it is answered, so many times."""
    for _ in range(num_rounds):
        request = Request(next(tasks), env.now)
        yield from ask(request)
        if request.outcome is not Outcome.ANSWERED:
            yield env.timeout(RETRY_SECONDS)
