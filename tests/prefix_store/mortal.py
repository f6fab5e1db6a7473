"""A process that writes to a fleet's store until it is killed.

Not a fork of the test's own: the object store's client has threads, which a fork does not take along.
"""

from multiprocessing import get_context
from multiprocessing.connection import Connection

from tests.prefix_store.durability import write_for_ever
from tests.prefix_store.homes import FleetHome

_PROCESSES = get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.prefix_store.mortal"])


class FleetWriter:
    def __init__(self, home: FleetHome, seed: int) -> None:
        self._lines, theirs = _PROCESSES.Pipe(duplex=False)
        self._process = _PROCESSES.Process(target=_write, args=(home, seed, theirs))
        self._process.start()
        theirs.close()

    def line(self) -> str:
        """The next line, or nothing once the process is gone."""
        try:
            return self._lines.recv_bytes().decode()
        except EOFError:
            return ""

    def lines(self) -> list[str]:
        return list(iter(self.line, ""))

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._lines.close()
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _write(home: FleetHome, seed: int, told: Connection) -> None:
    write_for_ever(home.open(), seed, lambda line: told.send_bytes(line.encode()))
