"""One worker's part in a process of its own: ``python -m claude_force_cache.testing._process``.

Reads from standard input the parent's ``sys.path`` as a line of JSON, then what :func:`pickle.dumps` made of the
backend's factory, the deed and the worker's number. Writes what the worker returned as JSON.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from typing import Any, Callable, List, Sequence

__all__ = ["ProcessFailure", "run_processes"]

_PATIENCE = 120.0


class ProcessFailure(Exception):  # noqa: N818 - it tells of a failure, and is none of this package's errors
    """Raised when a worker's process ended badly; the message has its last words."""


def run_processes(factory: Callable[[], Any], deed: str, workers: int) -> List[List[str]]:
    """Let workers do their part at the same time, each in a process, and return what each returned.

    :raises ProcessFailure: if one failed, or did not end in time.
    """
    started: List[subprocess.Popen[bytes]] = []
    try:
        for number in range(workers):
            process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            started.append(process)
            _tell(process, pickle.dumps((factory, deed, number)))
        return [_result(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _tell(process: subprocess.Popen[bytes], work: bytes) -> None:
    if process.stdin is None:
        raise ValueError("the process was started without standard input")
    process.stdin.write(json.dumps(sys.path).encode() + b"\n" + work)
    process.stdin.close()
    process.stdin = None


def _result(process: subprocess.Popen[bytes]) -> List[str]:
    try:
        out, err = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise ProcessFailure(f"a worker's process did not end within {_PATIENCE:g} seconds") from None
    if process.returncode:
        lines: Sequence[str] = err.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ProcessFailure(f"a worker's process ended with exit code {process.returncode}: {lines[-1]}")
    result: List[str] = json.loads(out)
    return result


async def _work(factory: Callable[[], Any], deed: str, number: int) -> List[str]:
    from .._backend import SyncBackend
    from .._threads import ThreadedBackend
    from ._storms import WORKERS

    made = factory()
    backend = ThreadedBackend(made) if isinstance(made, SyncBackend) else made
    await backend.open()
    try:
        return await WORKERS[deed](backend, number)
    finally:
        await backend.close()


def _main() -> None:
    sys.path[:] = json.loads(sys.stdin.buffer.readline())
    # What is read here was written by the process that started this one, a moment ago and into our own pipe.
    factory, deed, number = pickle.loads(sys.stdin.buffer.read())  # noqa: S301
    json.dump(asyncio.run(_work(factory, deed, number)), sys.stdout)


if __name__ == "__main__":
    _main()
