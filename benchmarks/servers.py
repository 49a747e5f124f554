"""Redis and Memcached for one run: each a process of our own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import List, Optional

__all__ = ["PROGRAMS", "Servers"]

PROGRAMS = {"redis": "redis-server", "memcached": "memcached"}
_HOST = "127.0.0.1"
_START_SECONDS = 20.0


class Servers:
    """Servers, a fresh one for each use, so that nobody's figures depend on what others stored. :meth:`close` ends all.

    :param folder: an existing folder for what they write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: List[subprocess.Popen[bytes]] = []

    @staticmethod
    def program(kind: str) -> Optional[str]:
        """Return the path of the server's program, or None if it is not installed."""
        return shutil.which(PROGRAMS[kind])

    def close(self) -> None:
        """End the servers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def start(self, kind: str) -> int:
        """Return the port of a new and empty server.

        :raises RuntimeError: if it does not start.
        """
        # Somebody else may take a free port between the look and the start.
        for _ in range(5):
            port = _free_port()
            with (self._folder / f"{kind}-{port}.log").open("wb") as log:
                process = subprocess.Popen(
                    [str(self.program(kind)), *_arguments(kind, port)], cwd=str(self._folder), stdout=log, stderr=log
                )
            self._processes.append(process)
            deadline = time.monotonic() + _START_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if _reported_pid(kind, port) == process.pid:
                    return port
                time.sleep(0.02)
        raise RuntimeError(f"{PROGRAMS[kind]} does not start; run it by hand to see why")


def _arguments(kind: str, port: int) -> List[str]:
    if kind == "redis":
        return ["--port", str(port), "--bind", _HOST, "--appendonly", "no", "--save", ""]
    # Enough memory that the server never evicts by itself: what is measured is our limit.
    return ["-l", _HOST, "-p", str(port), "-U", "0", "-m", "1024", "-u", pwd.getpwuid(os.geteuid()).pw_name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _reported_pid(kind: str, port: int) -> Optional[int]:
    """Return the process id that the server tells of itself: proof that it is the one that was started."""
    question, mark, end = (
        (b"INFO server\r\n", b"process_id:", b"executable:")
        if kind == "redis"
        else (b"stats\r\n", b"STAT pid ", b"END\r\n")
    )
    answer = b""
    try:
        with socket.create_connection((_HOST, port), timeout=2) as connection:
            connection.sendall(question)
            while end not in answer:
                part = connection.recv(65536)
                if not part:
                    return None
                answer += part
    except OSError:
        return None
    return int(answer.partition(mark)[2].split()[0])
