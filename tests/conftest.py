"""Real servers for the tests: each on a free loopback port, proven to be the one that was started here.

``CLAUDE_FORCE_TEST_REDIS_URL`` and ``CLAUDE_FORCE_TEST_MEMCACHED_URL`` point the session's servers to ones
that run already, as services of a CI do. Tests keep to random namespaces and never flush, so such a server
may be shared. Tests that stop or misconfigure a server always start one of their own.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

# How long an example takes on a busy machine says nothing about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# A run in the background is started with SIGINT ignored, and so would be every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

_START_SECONDS = 20.0
_INSTALL = "install it with `apt-get install redis-server memcached` or `make servers`"


class ServerProcess:
    """A Redis or Memcached server of our own, which can be stopped and started again on its port."""

    def __init__(self, kind: str, folder: Path, arguments: List[str]) -> None:
        self.kind = kind
        self.folder = folder
        self.arguments = arguments
        self.host = "127.0.0.1"
        self.port = 0
        self._process: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        return f"{self.kind}://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        program = {"redis": "redis-server", "memcached": "memcached"}[self.kind]
        path = shutil.which(program)
        if path is None:
            pytest.fail(f"{program} is not on PATH: {_INSTALL}", pytrace=False)
        # Somebody else may take a free port between the look and the start, so a first start may try again.
        attempts = 1 if self.port else 5
        for attempt in range(attempts):
            port = self.port or _free_port()
            log = (self.folder / f"{self.kind}-{port}.log").open("ab")
            with log:
                self._process = subprocess.Popen(
                    [path, *self._own_arguments(port), *self.arguments], stdout=log, stderr=log, cwd=str(self.folder)
                )
            if self._answers(port):
                self.port = port
                return
            self.stop()
            assert attempt + 1 < attempts, f"{program} did not start; see {log.name}"

    def stop(self, *, sig: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(sig)
            self._process.wait(_START_SECONDS)
            self._process = None

    def signal(self, sig: int) -> None:
        """Send it a signal; SIGSTOP has stopped all of its threads when this returns."""
        assert self._process is not None
        self._process.send_signal(sig)
        if sig == signal.SIGSTOP:
            # A thread that runs on another core may answer once more before the signal reaches it.
            _, status = os.waitpid(self._process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"{self.kind} ended instead of stopping"

    def _own_arguments(self, port: int) -> List[str]:
        if self.kind == "redis":
            # No snapshots: a server that is started again is empty, as Memcached is.
            base = f"--port {port} --bind {self.host} --daemonize no --appendonly no --dir {self.folder}"
            return [*base.split(), "--save", ""]
        # A listing of all items walks the hash table, so a small one makes the tests quick.
        base = f"-l {self.host} -p {port} -U 0 -o hashpower=13"
        return [*base.split(), "-u", pwd.getpwuid(os.geteuid()).pw_name]

    def _answers(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if reported_pid(self.kind, self.host, port, self._password()) == self._process.pid:
                return True
            time.sleep(0.02)
        return False

    def _password(self) -> Optional[str]:
        if "--requirepass" in self.arguments:
            return self.arguments[self.arguments.index("--requirepass") + 1]
        return None


class ForeignServer:
    """A server that somebody else runs for the tests, named by an environment variable."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        default = {"redis": 6379, "memcached": 11211}[parts.scheme]
        self.kind, self.url = parts.scheme, url
        self.host, self.port = parts.hostname or "localhost", parts.port or default
        # reported_pid speaks as an anonymous client, so a server with a password is left to the tests.
        if parts.password is None and reported_pid(self.kind, self.host, self.port) is None:
            pytest.fail(f"no {self.kind} server answers at {self.host}:{self.port}", pytrace=False)


def reported_pid(kind: str, host: str, port: int, password: Optional[str] = None) -> Optional[int]:
    """Return the process id that the server at ``host:port`` tells of itself, or None if none answers."""
    if kind == "redis":
        login = f"AUTH {password}\r\n" if password else ""
        question, mark, end = f"{login}INFO server\r\n", b"process_id:", b"executable:"
    else:
        question, mark, end = "stats\r\n", b"STAT pid ", b"END\r\n"
    answer = b""
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(question.encode())
            while end not in answer:
                part = connection.recv(65536)
                if not part:
                    return None
                answer += part
    except OSError:
        return None
    return int(answer.partition(mark)[2].split()[0]) if mark in answer else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _session_server(kind: str, factory: pytest.TempPathFactory) -> Iterator[object]:
    url = os.environ.get(f"CLAUDE_FORCE_TEST_{kind.upper()}_URL")
    if url:
        yield ForeignServer(url)
        return
    server = ServerProcess(kind, factory.mktemp(kind), [])
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The session's Redis: ``url``, ``host`` and ``port``."""
    yield from _session_server("redis", tmp_path_factory)


@pytest.fixture(scope="session")
def memcached_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The session's Memcached: ``url``, ``host`` and ``port``."""
    yield from _session_server("memcached", tmp_path_factory)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server for one test alone: ``start_server("redis", "--requirepass", "x")``."""
    started: List[ServerProcess] = []

    def start(kind: str, *arguments: str) -> ServerProcess:
        server = ServerProcess(kind, tmp_path, list(arguments))
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop(sig=signal.SIGKILL)


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test and no other run uses."""
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The ``host:port`` of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def absent_server() -> str:
    """A ``host:port`` on which nobody listens."""
    return f"127.0.0.1:{_free_port()}"
