"""Files are read together as far as there is room for their bytes; a large one gets its turn."""

from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from threading import Event, Lock

import pytest

from prefix_store import store as store_module
from prefix_store.reading_room import ReadingRoom
from prefix_store.store import PrefixStore
from tests.prefix_store.homes import Home
from tests.prefix_store.support import native_file, publish

NUM_READERS = 8
PATIENCE = 30.0  # seconds
ROOM = 10  # bytes


def test_no_more_is_read_at_once_than_there_is_room_for() -> None:
    room = ReadingRoom(ROOM)
    lock = Lock()
    open_files: list[int] = []
    seen: list[tuple[int, ...]] = []

    def read(num_bytes: int) -> None:
        with room.taken(num_bytes):
            with lock:
                open_files.append(num_bytes)
                seen.append(tuple(open_files))
            with lock:
                open_files.remove(num_bytes)

    sizes = [size for size, _ in zip(cycle((1, 5, 7, 3, 25)), range(2000), strict=False)]
    with ThreadPoolExecutor(NUM_READERS) as threads:
        assert len(list(threads.map(read, sizes))) == 2000
    assert all(sum(sizes) <= ROOM or len(sizes) == 1 for sizes in seen)


def test_files_for_which_there_is_room_are_read_together() -> None:
    room = ReadingRoom(ROOM)

    def read_two() -> None:
        with room.taken(ROOM // 2), room.taken(ROOM // 2):
            pass

    with ThreadPoolExecutor(1) as threads:
        threads.submit(read_two).result(PATIENCE)


def test_a_large_file_gets_in_though_small_ones_keep_coming() -> None:
    room = ReadingRoom(ROOM)
    large_was_read = Event()

    def read_large() -> None:
        with room.taken(2 * ROOM):
            large_was_read.set()

    def read_small_ones() -> None:
        while not large_was_read.is_set():
            with room.taken(1):
                pass

    with ThreadPoolExecutor(NUM_READERS) as threads:
        small = [threads.submit(read_small_ones) for _ in range(NUM_READERS - 1)]
        threads.submit(read_large).result(PATIENCE)
        for reader in small:
            reader.result(PATIENCE)


def test_one_that_fails_leaves_its_room() -> None:
    room = ReadingRoom(ROOM)
    with pytest.raises(OSError, match="unread"), room.taken(ROOM):
        raise OSError("unread")
    with room.taken(ROOM):
        pass


def test_first_uses_of_many_tasks_are_read_one_after_another_where_there_is_room_for_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_BYTES_READ_AT_ONCE", len(native_file()))
    store = home.open()
    tasks = [f"task-{seed}" for seed in range(NUM_READERS)]
    for seed, task_id in enumerate(tasks):
        publish(store, task_id, seed=seed)
    reading = Lock()
    read = store_module.PrefixStore._read

    def read_alone(self: PrefixStore, *args: object) -> bytes:
        assert reading.acquire(blocking=False), "two files at once"
        try:
            return read(self, *args)
        finally:
            reading.release()

    monkeypatch.setattr(store_module.PrefixStore, "_read", read_alone)
    with ThreadPoolExecutor(NUM_READERS) as threads:
        served = list(threads.map(lambda task_id: store.get("default", task_id), tasks))
    assert [one.task_id for one in served] == tasks
    store.close()
