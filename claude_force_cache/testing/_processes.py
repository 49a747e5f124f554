"""Checks of several processes on one store."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Callable, List, Sequence

from . import _worker
from ._checks import check
from ._concurrency import judge_adds, judge_stores, judge_tickets, judge_writes
from ._kit import Kit
from ._needs import able, hook, unable
from ._stage import Stage

_WORKERS = 3
_SHARE = 200
_PATIENCE = 120.0


class _ProcessError(Exception):
    """Raised when a worker's process ended badly; the message has its last words."""


def _processes(kit: Kit, stage: Stage, deed: str, workers: int = _WORKERS) -> List[List[str]]:
    factory = kit.suite.second_process(namespace=stage.namespace, max_bytes=stage.max_bytes)
    _require_pickle(factory)
    stage.note(f"{workers} processes {deed} at the same time")
    try:
        return _run(factory, deed, workers)
    except _ProcessError as error:
        raise stage.failure(str(error)) from error


def _require_pickle(factory: Callable[[], Any]) -> None:
    try:
        pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"second_process returned what another process cannot be given ({error}): "
            "return functools.partial(YourBackend, settings), made of what can be imported"
        ) from error


def _run(factory: Callable[[], Any], deed: str, workers: int) -> List[List[str]]:
    """Let workers do their part at the same time, each in a process, and return what each returned.

    :raises _ProcessError: if one failed, or did not end in time.
    """
    started: List[subprocess.Popen[bytes]] = []
    try:
        for number in range(workers):
            process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
                [sys.executable, _worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            started.append(process)
            _write(process, json.dumps(sys.path).encode() + b"\n" + pickle.dumps((factory, deed, number)))
        _await_ready(started)
        for process in started:
            _write(process, b"\n")
        return [_result(process) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _write(process: subprocess.Popen[bytes], data: bytes) -> None:
    if process.stdin is None:
        raise ValueError("the process was started without standard input")
    try:
        process.stdin.write(data)
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, and _result tells why


def _await_ready(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Return when each process is ready, or has ended.

    :raises _ProcessError: if that takes too long.
    """
    with ThreadPoolExecutor(len(processes)) as pool:
        lines = [pool.submit(process.stdout.readline) for process in processes if process.stdout is not None]
        if wait(lines, _PATIENCE).not_done:
            for process in processes:
                process.kill()
            raise _ProcessError(f"a worker's process did not open the backend within {_PATIENCE:g} seconds")


def _result(process: subprocess.Popen[bytes]) -> List[str]:
    try:
        out, err = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise _ProcessError(f"a worker's process did not end within {_PATIENCE:g} seconds") from None
    if process.returncode:
        lines: Sequence[str] = err.decode(errors="replace").strip().splitlines() or ["no message"]
        raise _ProcessError(f"a worker's process ended with exit code {process.returncode}: {lines[-1]}")
    result: List[str] = json.loads(out)
    return result


@check(able("shared_between_processes"), hook("second_process"))
def processes_adding(kit: Kit) -> None:
    """Of any number of processes that add one key exactly one is told that it did."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        judge_adds(stage, handle, _processes(kit, stage, "add"))


@check(able("shared_between_processes"), hook("second_process"))
def processes_storing(kit: Kit) -> None:
    """The account loses nothing of what several processes store, overwrite and delete at the same time."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        judge_stores(stage, handle, _processes(kit, stage, "store"))


@check(able("shared_between_processes"), hook("second_process"))
def processes_writing_at_the_limit(kit: Kit) -> None:
    """The account is exact and within the limit after several processes have written the same keys."""
    with kit.stage(_SHARE, real_time=True) as stage:
        handle = stage.handle()
        _processes(kit, stage, "write")
        judge_writes(stage, handle)


@check(able("shared_between_processes"), hook("second_process"))
def processes_deleting(kit: Kit) -> None:
    """A delete by version takes what was read and nothing newer, also between processes."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        judge_tickets(stage, handle, _processes(kit, stage, "take"))


@check(unable("shared_between_processes"), hook("second_process"))
def processes_apart(kit: Kit) -> None:
    """A store that is declared as not shared is not: what processes share has to be declared."""
    with kit.stage(real_time=True) as stage:
        handle = stage.handle()
        handle.set("key", b"value")
        _processes(kit, stage, "store", 1)
        stage.account(handle, 1, 8)
