"""Redis and Memcached for experiments: processes of our own, which can be killed and come back on their port."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

__all__ = ["Server", "commands", "memcached_stats", "redis_client", "sum_of_sent"]

_CALL = re.compile(r"redis\.p?call\('(\w+)'")
_HOST = "127.0.0.1"
_START_SECONDS = 30.0
_PROGRAMS = {"redis": "redis-server", "memcached": "memcached"}


class Server:
    """A server that is not started yet, on a free port that it keeps.

    :param kind: ``redis`` or ``memcached``.
    :param folder: an existing folder for what it writes.
    :param arguments: more of its command line.
    :param configuration: the file that a Sentinel needs, and rewrites.
    :raises RuntimeError: if its program is not installed.
    """

    def __init__(self, kind: str, folder: Path, *arguments: str, configuration: Optional[Path] = None) -> None:
        program = shutil.which(_PROGRAMS[kind])
        if program is None:
            raise RuntimeError(f"{_PROGRAMS[kind]} is not installed: make servers")
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"{kind}://{_HOST}:{self.port}"
        self._hello = b"PING\r\n" if kind == "redis" else b"version\r\n"
        self._welcome = b"+PONG" if kind == "redis" else b"VERSION"
        first = [] if configuration is None else [str(configuration)]
        self._command = [program, *first, *_own_arguments(kind, self.port, folder), *arguments]
        self._log = folder / f"{kind}-{self.port}.log"
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        """Start it, and return when it answers.

        :raises RuntimeError: if it does not.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection((_HOST, self.port), 1) as connection:
                    connection.sendall(self._hello)
                    if connection.recv(100).startswith(self._welcome):
                        return
            except OSError:
                pass
            time.sleep(0.005)
        raise RuntimeError(f"{self._command[0]} does not start, see {self._log}")

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal, while it runs. SIGSTOP has stopped all of its threads when this returns."""
        if self._process is not None:
            self._process.send_signal(number)
            if number == signal.SIGSTOP:
                os.waitpid(self._process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Kill it, and return when its port is free. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _own_arguments(kind: str, port: int, folder: Path) -> List[str]:
    if kind == "redis":
        return ["--port", str(port), "--bind", _HOST, "--dir", str(folder), "--save", ""]
    return ["-l", _HOST, "-p", str(port), "-U", "0", "-u", pwd.getpwuid(os.geteuid()).pw_name]


def redis_client(url: str) -> Any:
    """Return a client to close. Its library's types differ from release to release."""
    import redis

    return redis.Redis.from_url(url)


def memcached_stats(url: str) -> Dict[str, int]:
    """Return the numbers among what a Memcached says of itself."""
    from pymemcache.client.base import Client

    with closing(Client(url.split("//")[1])) as client:
        stats = client.stats()
    # The client makes numbers of some of them.
    texts = {name.decode(): value.decode() if isinstance(value, bytes) else str(value) for name, value in stats.items()}
    return {name: int(text) for name, text in texts.items() if text.isdigit()}


def commands(url: str) -> Dict[str, int]:
    """Return how many commands of each kind a server has carried out so far.

    On a Redis those inside of scripts, too. A Memcached counts keys: a read of ten is ten.
    """
    if url.startswith("redis:"):
        with closing(redis_client(url)) as client:
            return {name[len("cmdstat_") :]: of_one["calls"] for name, of_one in client.info("commandstats").items()}
    stats = memcached_stats(url)
    counts = {name: stats[f"cmd_{name}"] for name in ("get", "set", "touch", "meta")}
    for name in ("incr", "decr", "delete"):
        counts[name] = stats[f"{name}_hits"] + stats[f"{name}_misses"]
    return counts


def sum_of_sent(counts: Mapping[str, float]) -> float:
    """Return how many of a server's commands came from clients of this package, and not out of its scripts."""
    from claude_force_backends._redis_scripts import SCRIPTS

    inside = {name.lower() for script in SCRIPTS.values() for name in _CALL.findall(script.text)}
    if "evalsha" not in counts:
        return sum(counts.values())
    return sum(count for name, count in counts.items() if name not in inside)
