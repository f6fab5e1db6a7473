"""One operation on a store, one fault of the kernel, and what a fresh process then finds.

Acknowledged means durable; what was not acknowledged is absent or whole; a fault that is over leaves nothing behind.
"""

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefix_store.store import PrefixStore
from tests.prefix_store.durability import Child, State, attempt, litter, observe, opened, tell
from tests.prefix_store.support import BACKBONE, publish
from tests.torture.faults import Point, has_failed, not_durable, points, traced


@dataclass(frozen=True, slots=True)
class Scene:
    """An operation on copies of `template`, which it turns from the state `before` to `after`."""

    operation: str
    template: Path
    room: Path
    before: State
    after: State


def set_scene(operation: str, room: Path, prepare: Callable[[Path], None]) -> Scene:
    template = room / "template"
    prepare(template)
    with opened(template) as store:
        before = observe(store)
    copy = room / "done"
    shutil.copytree(template, copy)
    with opened(copy) as store:
        assert attempt(store, operation) == "acknowledged"
        after = observe(store)
    assert before != after
    return Scene(operation, template, room, before, after)


def enumerate_points(scene: Scene) -> tuple[list[Point], list[str]]:
    """The system calls that the operation makes, up to its acknowledgement; and what of it power loss could undo."""
    log = scene.room / "log"
    lines, directory = _run(scene, log, inject=None, attempts=1)
    assert lines == ["acknowledged"], lines
    registry = {str(directory / f"registry.sqlite3{end}") for end in ("", "-wal", "-shm")}
    shutil.rmtree(directory)
    return points(log), [f"{scene.operation}: {path}" for path in not_durable(log, registry)]


def kill_at(scene: Scene, point: Point) -> list[str]:
    """Kill the writer as it enters the call; what was wrong then."""
    inject = f"{point.name}:signal=KILL:when={point.nth}"
    lines, directory = _run(scene, scene.room / "log", inject=inject, attempts=1)
    wrong = ["it was not killed"] if lines else []
    with opened(directory) as store:
        found = observe(store)
        if list(directory.glob("*/*.tmp")):
            wrong.append("a temporary is left after opening")
        if found not in (scene.before, scene.after):
            wrong.append(f"neither before nor after: {found}")
        if store.upkeep.scan():
            wrong.append(f"damage: {store.upkeep.scan()}")
        if found == scene.before and attempt(store, scene.operation) != "acknowledged":
            wrong.append("it does not work again")
        if observe(store) != scene.after:
            wrong.append("done again, it is not done")
    shutil.rmtree(directory)
    return [f"{scene.operation}, killed at {point}: {problem}" for problem in wrong]


def fail_at(scene: Scene, point: Point, code: str, *, for_good: bool) -> tuple[bool, list[str]]:
    """Let the call fail, once or from then on; whether the operation was acknowledged all the same, and what was wrong.

    When the fault is over the same process does it again.
    """
    inject = f"{point.name}:error={code}:when={point.nth}{'+' if for_good else ''}"
    lines, directory = _run(scene, scene.room / "log", inject=inject, attempts=2)
    first, found_first, second, found_second = [*lines, "", "", "", ""][:4]
    wrong = [] if has_failed(scene.room / "log") else ["it did not fail"]
    if first == "acknowledged":
        if found_first != "after":
            wrong.append("acknowledged and not done")
        if point.name in ("fsync", "fdatasync", "write", "pwrite64", "rename") and not _is_of_root(point, directory):
            wrong.append("acknowledged although it failed")
    elif first not in _right_errors(code):
        wrong.append(f"told as {first or 'nothing: the process died'}")
    elif found_first != "before" and first != "CommitUncertain":
        wrong.append(f"refused, and then {found_first}")
    if second != "acknowledged" and not (found_first == "after" and second == "UnknownTask"):
        wrong.append(f"when the fault was over: {second}")
    if found_second != "after":
        wrong.append(f"done again, it is {found_second}")
    if list(directory.glob("*/*.tmp")):
        wrong.append("a temporary is left")
    with opened(directory) as store:
        if observe(store) != scene.after:
            wrong.append("a fresh process finds something else")
        if left := litter(directory, store):
            wrong.append(f"litter: {left}")
        if store.upkeep.scan():
            wrong.append(f"damage: {store.upkeep.scan()}")
    shutil.rmtree(directory)
    title = f"{scene.operation}, {code}{' for good' if for_good else ''} at {point}"
    return first == "acknowledged", [f"{title}: {problem}" for problem in wrong]


def _is_of_root(point: Point, directory: Path) -> bool:
    # SQLite syncs the folder when it begins to write its log and ignores that failing; it was synced at opening.
    return f"<{directory}>" in point.line


def _right_errors(code: str) -> set[str]:
    # SQLite tells a full disk only where it writes; a sync that fails for want of room is a failure like others.
    failed = {"StoreUnavailable", "CommitUncertain"}
    return failed | {"OutOfSpace"} if code == "ENOSPC" else failed


def _run(scene: Scene, log: Path, *, inject: str | None, attempts: int) -> tuple[list[str], Path]:
    """Have a process do the operation with the fault, and then without; what it told of each, and of what it found."""
    directory = scene.room / "trial"
    shutil.copytree(scene.template, directory)
    child = Child(lambda told: _work(directory, scene, told, attempts))
    assert child.line() == "ready"
    with traced(child.pid, log, inject=inject):
        child.go()
        lines = [child.line()]
        if attempts == 1:
            child.kill()
    if attempts == 2:
        child.go()
    lines += child.lines()
    child.wait()
    return [line for line in lines if line], directory


def _work(directory: Path, scene: Scene, told: socket.socket, attempts: int) -> None:
    store = PrefixStore(directory, backbone=BACKBONE)
    names = [(scene.before, "before"), (scene.after, "after")]
    tell(told, "ready")
    told.recv(1)
    tell(told, attempt(store, scene.operation))
    told.recv(1)
    if attempts == 2:
        tell(told, _name(observe(store), names))
        tell(told, attempt(store, scene.operation))
        tell(told, _name(observe(store), names))


def _name(state: State, names: list[tuple[State, str]]) -> str:
    return next((name for named, name in names if named == state), f"neither: {state}")


def kill_while_starting(room: Path) -> tuple[int, list[str]]:
    """Kill a process at every call of its making a new store; at how many calls, and what was wrong then."""
    _start(room / "trial", room / "log", inject=None)
    shutil.rmtree(room / "trial")
    found, wrong = points(room / "log"), [path for path in not_durable(room / "log") if "acknowledged" in path]
    for point in found:
        if _start(room / "trial", room / "log", inject=f"{point.name}:signal=KILL:when={point.nth}"):
            wrong.append(f"starting, at {point}: it was not killed")
        with opened(room / "trial") as store:
            publish(store)
            if store.upkeep.verify():
                wrong.append(f"starting, killed at {point}: damage")
        shutil.rmtree(room / "trial")
    return len(found), wrong


def _start(directory: Path, log: Path, *, inject: str | None) -> bool:
    """Whether the process lived to have the store open."""

    def work(told: socket.socket) -> None:
        tell(told, "ready")
        told.recv(1)
        PrefixStore(directory, backbone=BACKBONE)
        tell(told, "open")
        told.recv(1)

    child = Child(work)
    assert child.line() == "ready"
    with traced(child.pid, log, inject=inject):
        child.go()
        is_open = child.line() == "open"
        child.kill()
    child.wait()
    return is_open
