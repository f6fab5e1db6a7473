"""A real PostgreSQL and a real object store (SeaweedFS), started for the tests on ports and folders of their own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class PostgreSQL:
    """Stopped and started again by the tests that want to see what happens then."""

    directory: Path
    binaries: Path
    port: int = field(default_factory=free_port)
    account: pwd.struct_passwd | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tests@127.0.0.1:{self.port}/"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "-D", self.directory / "data", "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.directory / "data", "-w", "-m", "immediate", "stop")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Connections that there are go on; whoever wants a new one waits."""
        postmaster = int((self.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(postmaster, signal.SIGCONT)

    def run(self, program: str, *arguments: str | Path) -> None:
        user: dict[str, object] = {}
        if self.account is not None:
            user = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        subprocess.run(
            [self.binaries / program, *arguments], check=True, cwd=self.directory, stdout=subprocess.DEVNULL, **user
        )


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    binaries = _postgresql_programs()
    if binaries is None:
        pytest.skip("needs PostgreSQL (Debian: apt-get install postgresql)")
    with TemporaryDirectory(prefix="postgresql-") as name:  # not pytest's: no other user may look into that
        server = PostgreSQL(Path(name), binaries)
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            try:
                server.account = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(name, server.account.pw_uid, server.account.pw_gid)
        # A language whose order is not that of the characters, as a database in use has.
        order = ("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
        server.run("initdb", "-D", Path(name) / "data", "-U", "tests", "-A", "trust", "-E", "UTF8", *order)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _postgresql_programs() -> Path | None:
    """Where `initdb` is: on the path, or where Debian puts it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@dataclass
class SeaweedFS:
    directory: Path
    program: str
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the object store's client has to be told."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}"}

    def start(self) -> None:
        ports = [f"-{name}.port={port}" for name, port in self.ports.items() if not name.endswith("grpc")]
        grpc = [f"-{name}={port}" for name, port in self.ports.items() if name.endswith("grpc")]
        self.process = subprocess.Popen(
            [self.program, "mini", f"-dir={self.directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
             "-master.telemetry=false", *ports, *grpc],
            env={**os.environ, **CREDENTIALS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("SeaweedFS did not start")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports['s3']}/healthz", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextmanager
    def gone(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers none."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def seaweedfs(directory: Path) -> Iterator[SeaweedFS]:
    beside = Path(sys.executable).parent / "weed"
    program = str(beside) if beside.exists() else shutil.which("weed")
    if program is None:
        pytest.skip("needs SeaweedFS (make test-fleet installs it)")
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3", "admin") for kind in ("", ".grpc")]
    ports = {name.removesuffix(".port"): free_port() for name in names}
    server = SeaweedFS(directory, program, ports)
    server.start()
    try:
        yield server
    finally:
        server.stop()
