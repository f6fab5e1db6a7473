"""One replica: slots, a queue, steps that give every running row a token, and a cache of prefixes.

Knows simulated time and costs. Knows nothing of other replicas, or of who asks.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from simpy import Environment, Event, Interrupt, Process

from benchmarks.fleet.costs import ReplicaCosts, Work

POINTER_SECONDS = 2.0  # for which a server believes what the registry said of a task: prefix_store/principals.py
Wait = Generator[Event, Any, None]  # what a simulated process does: it waits for one event after another


class Outcome(Enum):
    ANSWERED = 200
    REFUSED = 429
    FAILED = 502


@dataclass(slots=True)
class Request:
    """Moments are in seconds of the simulation.

    `was_looked_up`: the registry was asked for its task. `was_cold`: its prefix was not in the replica's memory.
    """

    task: int
    arrived_at: float
    first_token_at: float = 0.0
    ended_at: float = 0.0
    was_looked_up: bool = False
    was_cold: bool = False
    outcome: Outcome = Outcome.FAILED


class PrefixCache:
    """The tasks whose prefixes are in memory: the least recently used goes first. `warm`: those used last, in order."""

    def __init__(self, max_prefixes: int, warm: Iterable[int] = ()) -> None:
        self._max_prefixes = max_prefixes
        self._kept: OrderedDict[int, None] = OrderedDict.fromkeys(warm)

    def has(self, task: int) -> bool:
        """Being asked for is being used."""
        if task not in self._kept:
            return False
        self._kept.move_to_end(task)
        return True

    def keep(self, task: int) -> None:
        self._kept[task] = None
        if len(self._kept) > self._max_prefixes:
            self._kept.popitem(last=False)


class Replica:
    """Answers requests from the moment it is made; after `lose` it is `is_up` again once it has started, cold."""

    def __init__(
        self, env: Environment, costs: ReplicaCosts, work: Work, cache_bytes: int, warm: Iterable[int] = ()
    ) -> None:
        self._env, self._costs, self._work = env, costs, work
        self._max_prefixes = cache_bytes // costs.prefix_bytes
        self._step_seconds = [costs.step(num_rows) for num_rows in range(costs.max_num_seqs + 1)]
        self._begin(warm)

    def _begin(self, warm: Iterable[int]) -> None:
        self._cache = PrefixCache(self._max_prefixes, warm)
        self._loading: dict[int, Event] = {}
        self._looked_up_at: dict[int, float] = {}
        self._open: dict[Process, None] = {}  # a dict, so that they are lost in the order in which they came
        self._waiting: deque[tuple[Request, Event]] = deque()
        self._ending: defaultdict[int, list[Event]] = defaultdict(list)  # by the number of their last step
        self._num_running = self._num_steps = 0
        self._owed = 0.0  # seconds that others take of the engine's core before its next step
        self._work_came = self._env.event()
        self.is_up = True
        self._engine = self._env.process(self._run())

    @property
    def num_open(self) -> int:
        return len(self._open)

    def answer(self, request: Request) -> Wait:
        """The request's whole life; what became of it is in the request."""
        if self.num_open >= self._costs.max_open:
            request.outcome = Outcome.REFUSED
            return
        mine = self._env.active_process
        assert mine is not None, "called outside a simulated process"
        self._open[mine] = None
        try:
            yield from self._beside(self._costs.request_seconds)
            yield from self._find_prefix(request)
            ended = self._env.event()
            self._waiting.append((request, ended))
            if not self._work_came.triggered:
                self._work_came.succeed()
            yield ended
            request.outcome = Outcome.ANSWERED
        except Interrupt:
            request.outcome = Outcome.FAILED
        finally:
            self._open.pop(mine, None)

    def lose(self) -> Wait:
        """The machine is gone: what is in flight fails, and a new one starts in its place."""
        self.is_up = False
        for process in (self._engine, *self._open):
            process.interrupt()
        yield self._env.timeout(self._costs.start_seconds)
        self._begin(warm=())

    def _beside(self, seconds: float) -> Wait:
        """Work that is not the engine's, on a spare core or at the engine's expense."""
        if self._costs.has_spare_core:
            yield self._env.timeout(seconds)
        else:
            self._owed += seconds

    def _find_prefix(self, request: Request) -> Wait:
        now, task = self._env.now, request.task
        if now >= self._looked_up_at.get(task, -POINTER_SECONDS) + POINTER_SECONDS:
            self._looked_up_at[task] = now
            request.was_looked_up = True
        if self._cache.has(task):
            return
        request.was_cold = True
        if task in self._loading:  # one load for all who wait
            yield self._loading[task]
            return
        self._loading[task] = self._env.event()
        yield self._env.timeout(self._costs.cold_load_seconds)
        yield from self._beside(self._costs.load_seconds)
        self._cache.keep(task)
        self._loading.pop(task).succeed()

    def _run(self) -> Wait:
        """One step after another; while there are no rows it waits."""
        try:
            while True:
                if not self._waiting and not self._num_running:
                    self._work_came = self._env.event()
                    yield self._work_came
                admitted = self._admit()
                prompt_tokens = len(admitted) * self._work.num_prompt_tokens
                prefill = prompt_tokens * self._costs.prefill_seconds_per_token
                owed, self._owed = self._owed, 0.0
                yield self._env.timeout(self._step_seconds[self._num_running] + prefill + owed)
                self._commit(admitted)
        except Interrupt:
            return

    def _admit(self) -> list[Request]:
        admitted = []
        while self._waiting and self._num_running < self._costs.max_num_seqs:
            request, ended = self._waiting.popleft()
            self._ending[self._num_steps + self._work.num_new_tokens].append(ended)
            self._num_running += 1
            admitted.append(request)
        return admitted

    def _commit(self, admitted: Iterable[Request]) -> None:
        self._num_steps += 1
        for request in admitted:
            request.first_token_at = self._env.now
        for ended in self._ending.pop(self._num_steps, ()):
            self._num_running -= 1
            ended.succeed()
