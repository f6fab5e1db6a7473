"""What the durability tests share: operations on a store, what can be seen of one, and a process that may be killed.

The quick form is `test_durability.py` here, the long one `tests/torture`.
"""

import hashlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from prefix_store.errors import StoreError, UnknownTask, UnknownVersion
from prefix_store.store import PrefixStore
from tests.prefix_store.support import BACKBONE, native_file, publish

TENANTS = ("default", "newcomer")
TASK_IDS = ("poet", "clerk", "fresh")
# Of every version the hash of what was uploaded, and which of them is served, by tenant and task.
State = dict[str, tuple[int, list[str]]]


def publish_text(store: PrefixStore, task_id: str, seed: int) -> None:
    """A foreign upload: two files."""
    store.publish(
        "default",
        task_id,
        upload=b"text %d" % seed,
        native=native_file(seed),
        kind="text",
        num_virtual_tokens=3,
        backbone_checked=True,
    )


OPERATIONS: dict[str, Callable[[PrefixStore], object]] = {
    "publish": lambda store: publish(store, "fresh", tenant="newcomer", seed=5),
    "replace": lambda store: publish_text(store, "poet", seed=3),
    "rollback": lambda store: store.patch("default", "poet", version=1),
    "delete": lambda store: store.delete("default", "poet"),
}


def prepare(directory: Path) -> None:
    """Two tasks, one of them with two versions."""
    store = PrefixStore(directory, backbone=BACKBONE)
    publish(store, "clerk", seed=4)
    publish(store, "poet", seed=1)
    publish_text(store, "poet", seed=2)
    store.close()


def observe(store: PrefixStore, task_ids: tuple[str, ...] = TASK_IDS) -> State:
    """What the store has, read whole: a file that is missing or damaged raises."""
    state: State = {}
    for tenant in TENANTS:
        for task_id in task_ids:
            try:
                task = store.task(tenant, task_id)
            except UnknownTask:
                continue
            served = store.get(tenant, task_id)
            assert served.version == task.served_version, f"{task_id}: {served.version}, {task.served_version}"
            assert served.prefix.revision == task.served.native_sha256
            for version in task.versions:
                body, _ = store.upload_bytes(tenant, task_id, version.version)
                assert hashlib.sha256(body).hexdigest() == version.sha256
            state[f"{tenant}/{task_id}"] = (task.served_version, [version.sha256 for version in task.versions])
    return state


@contextmanager
def opened(directory: Path) -> Iterator[PrefixStore]:
    store = PrefixStore(directory, backbone=BACKBONE)
    try:
        yield store
    finally:
        store.close()


def litter(directory: Path, store: PrefixStore) -> set[str]:
    """Files of tenants that no version needs."""
    needed = {file.name for _, file in store.upkeep._needed_files()}
    return {path.name for path in directory.glob("*/*")} - needed


class Child:
    """A forked process that runs `work` with a socket, on which it tells what it did, line by line.

    Sockets, because a fault in `write` is then the store's and never the telling's.
    """

    def __init__(self, work: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                ours.close()
                work(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("r")

    def line(self) -> str:
        """The next line, or nothing once the process is gone."""
        return self._lines.readline().rstrip("\n")

    def lines(self) -> list[str]:
        return [line.rstrip("\n") for line in self._lines]

    def go(self) -> None:
        self._socket.sendall(b"g")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self._lines.close()
        self._socket.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def tell(told: socket.socket, line: str) -> None:
    told.sendall(f"{line}\n".encode())


def attempt(store: PrefixStore, operation: str) -> str:
    """`acknowledged`, or the name of the error."""
    try:
        OPERATIONS[operation](store)
    except StoreError as error:
        return type(error).__name__
    return "acknowledged"


# -- a writer that is killed at random moments ----------------------------------------------------------------------

NUM_THREADS = 2
NUM_TASKS = 3  # of each thread
NUM_SEEDS = 4
Step = tuple[str, str, int]  # operation, task_id, seed or version


@dataclass
class Model:
    """What the acknowledged steps must have left: each task's versions, as seeds, and which is served."""

    tasks: dict[str, list[int]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)

    def after(self, step: Step) -> "Model":
        operation, task_id, number = step
        tasks = {name: list(seeds) for name, seeds in self.tasks.items()}
        served = dict(self.served)
        seeds = tasks.get(task_id, [])
        if operation == "publish":
            if number not in seeds:
                seeds = tasks[task_id] = [*seeds, number]
            served[task_id] = 1 + seeds.index(number)
        elif operation == "rollback" and 1 <= number <= len(seeds):
            served[task_id] = number
        elif operation == "delete":
            tasks.pop(task_id, None)
            served.pop(task_id, None)
        return Model(tasks, served)

    def state(self) -> State:
        return {
            f"default/{task_id}": (self.served[task_id], [HASHES[seed] for seed in seeds])
            for task_id, seeds in self.tasks.items()
        }


BODIES = [native_file(seed) for seed in range(NUM_SEEDS)]
HASHES = [hashlib.sha256(body).hexdigest() for body in BODIES]
LOOP_TASK_IDS = tuple(f"t{thread}-{number}" for thread in range(NUM_THREADS) for number in range(NUM_TASKS))


def take_step(store: PrefixStore, step: Step) -> None:
    """As the server would; what it would answer with 404 changes nothing."""
    operation, task_id, number = step
    if operation == "publish":
        publish(store, task_id, seed=number)
        return
    try:
        if operation == "rollback":
            store.patch("default", task_id, version=number)
        else:
            store.delete("default", task_id)
    except (UnknownTask, UnknownVersion):
        return


def write_for_ever(store: PrefixStore, seed: int, tell: Callable[[str], None]) -> None:
    """Write in several threads, as the server does; tell each step before and after."""

    def write(thread: int) -> None:
        choice = random.Random(f"{seed}/{thread}")
        while True:
            operation = choice.choices(("publish", "rollback", "delete"), (6, 2, 1))[0]
            task_id = f"t{thread}-{choice.randrange(NUM_TASKS)}"
            step = (operation, task_id, choice.randrange(1, NUM_SEEDS))
            tell(f"begin {thread} {' '.join(map(str, step))}")
            take_step(store, step)
            tell(f"done {thread}")

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(write, range(NUM_THREADS)))


def possible(model: Model, lines: list[str]) -> tuple[Model, list[Step]]:
    """The model after all acknowledged steps, and those that had begun and were not acknowledged."""
    begun: dict[str, Step] = {}
    for line in lines:
        word, thread, *rest = line.split(" ")
        if word == "begin":
            begun[thread] = (rest[0], rest[1], int(rest[2]))
        elif word == "done":
            model = model.after(begun.pop(thread))
    return model, list(begun.values())


class Mortal(Protocol):
    """A process that runs `write_for_ever`, as whoever kills it sees it."""

    def line(self) -> str: ...

    def lines(self) -> list[str]: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


def kill_at_random(directory: Path, num_kills: int, seed: int) -> tuple[int, list[str]]:
    """Kill a writer that often; how many steps it had acknowledged, and what was wrong afterwards."""

    def begin(life: int) -> Child:
        return Child(lambda told: write_for_ever(PrefixStore(directory, backbone=BACKBONE), life, partial(tell, told)))

    def look() -> State:
        with opened(directory) as store:
            found = observe(store, LOOP_TASK_IDS)
        assert not list(directory.glob("*/*.tmp")), "a temporary file is left"
        return found

    return kill_often(begin, look, num_kills, seed)


def kill_often(
    begin: Callable[[int], Mortal], look: Callable[[], State], num_kills: int, seed: int
) -> tuple[int, list[str]]:
    """Begin a writer, kill it and look, that often; how many steps it had acknowledged, and what was wrong."""
    choice = random.Random(seed)
    model, num_acknowledged = Model(), 0
    for kill in range(num_kills):
        child = begin(seed * 1_000_003 + kill)
        # One in four at any moment of its life, the others while it writes.
        lines = [] if choice.random() < 0.25 else [child.line()]
        time.sleep(choice.uniform(0, 0.12))
        child.kill()
        lines += child.lines()
        child.wait()
        num_acknowledged += sum(line.startswith("done") for line in lines)
        model, in_flight = possible(model, lines)
        outcomes = [model]
        for step in in_flight:
            outcomes += [outcome.after(step) for outcome in outcomes]
        try:
            found = look()
        except AssertionError as error:
            return num_acknowledged, [f"kill {kill}: {error}"]
        matching = [outcome for outcome in outcomes if outcome.state() == found]
        if not matching:
            wrong = f"kill {kill}: {found} is none of {[outcome.state() for outcome in outcomes]}"
            return num_acknowledged, [wrong]
        model = matching[0]
    return num_acknowledged, []
