"""Many processes ask for one cold key at once: how many calls are made, and what those who wait pay.

    python -m reliability.one_call [--backend disk|redis|memcached] [--rounds N] [--seconds N] [--kills N]
                                   [--library ours|cashews|dogpile]

In each round every task of every process asks at the same moment. The call is a wait of a known length, so what a task
took beyond it is the price of waiting. Then holders of the lease are killed with -9 in the middle of their call.
Starts the servers and processes that it needs, and ends only these. Exits with 1 if a call was made twice or a
value was wrong. Other libraries, which need an environment that has them, are asked on the same Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, NamedTuple, Optional, Sequence

from claude_force_cache import open_cache

from .one_call_peers import PEERS, Ask, value_of
from .servers import Server, commands, sum_of_sent

__all__ = ["main"]

_LEASE = 1.0
"""Seconds: the shortest that a cache takes, so that a dead holder is noticed soon and a long call renews often."""

_AHEAD = 0.15
"""Seconds from telling the processes of a round to its beginning."""


class Round(NamedTuple):
    """What came of one round: calls made, and the seconds that each process' slowest task took beyond the call.

    :param busy: the seconds of processor time that all processes took together.
    """

    calls: int
    beyond: List[float]
    wrong: int
    busy: float


class Workers:
    """The processes that ask. One that was killed is replaced."""

    def __init__(self, url: str, count: int, tasks: int, calls: Path, library: str) -> None:
        self._command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "reliability.one_call",
            "--worker",
            url,
            str(tasks),
            str(calls),
            library,
        ]
        self._calls = calls
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if _line(process) != "ready":
            raise RuntimeError("a process of the experiment does not start")
        return process

    def ask(self, key: str, seconds: float, *, kill: bool = False) -> Round:
        """Let all ask for ``key``, whose making takes ``seconds``; kill the first one that makes it, if so wished."""
        begin = time.monotonic() + _AHEAD
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([key, seconds, begin]) + "\n")
            process.stdin.flush()
        killed: Optional[int] = None
        while kill and killed is None:
            killed = next(iter(self._made(key)), None)
            time.sleep(0.01)
        if killed is not None:
            os.kill(killed, signal.SIGKILL)
        beyond, wrong, busy = [], 0, 0.0
        for number, process in enumerate(self._processes):
            if process.pid == killed:
                process.wait()
                _close(process)
                self._processes[number] = self._start()
                continue
            reply: Dict[str, Any] = json.loads(_line(process))
            beyond.append(reply["seconds"] - seconds)
            wrong += reply["wrong"]
            busy += reply["busy"]
        return Round(len(self._made(key)), beyond, wrong, busy)

    def _made(self, key: str) -> List[int]:
        """Return the ids of the processes that began to make the value."""
        lines = (line.split() for line in self._calls.read_text().splitlines())
        return [int(process) for made, process in lines if made == key]

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._processes:
            process.kill()
            process.wait()
            _close(process)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


@asynccontextmanager
async def _ours(url: str, tasks: int) -> AsyncIterator[Ask]:
    async with open_cache(url, secrets="of an experiment only", tier_bytes=0, lease=_LEASE, timeout=5) as cache:
        await cache.ping()

        async def ask(key: str, began: Callable[[], object], seconds: float) -> List[str]:
            async def make() -> str:
                began()
                await asyncio.sleep(seconds)
                return value_of(key)

            return list(await asyncio.gather(*(cache.get_or_compute(key, make) for _ in range(tasks))))

        yield ask


async def _work(url: str, tasks: int, calls: int, library: str) -> None:
    """Ask as told on standard input until it ends."""
    loop = asyncio.get_running_loop()
    async with {"ours": _ours, **PEERS}[library](url, tasks) as ask:
        # Processes that do the same would look through all that they imported in the same round.
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        while True:
            line = await loop.run_in_executor(None, sys.stdin.readline)
            if not line:
                return
            key, seconds, begin = json.loads(line)
            await asyncio.sleep(max(0.0, begin - time.monotonic()))
            before = time.process_time()
            values = await ask(key, lambda key=key: os.write(calls, f"{key} {os.getpid()}\n".encode()), seconds)
            wrong = sum(value != value_of(key) for value in values)
            told = {"seconds": time.monotonic() - begin, "wrong": wrong, "busy": time.process_time() - before}
            print(json.dumps(told), flush=True)


def _worker(arguments: Sequence[str]) -> None:
    url, tasks, path, library = arguments
    calls = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        asyncio.run(_work(url, int(tasks), calls, library))
    finally:
        os.close(calls)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _count(url: str) -> Counter[str]:
    # Nobody counts the commands that a database file is given.
    return Counter() if url.startswith("disk:") else Counter(commands(url))


def _said_of(counted: Counter[str], rounds: int, options: argparse.Namespace, library: str) -> str:
    """Return how many commands a server was given, for each process and for each of its tasks."""
    if not counted:
        return ""
    sent = sum_of_sent(counted) if library == "ours" else sum(counted.values())
    inside = sum(counted.values()) - sent
    each = max(1, rounds * options.processes)
    in_scripts = f" and {inside / each:.1f} in scripts" if inside else ""
    return (
        f"; {sent / each:.1f} commands sent{in_scripts} for each process, "
        f"{(sent + inside) / each / options.tasks:.2f} in all for each task"
    )


def _experiment(backend: str, library: str, options: argparse.Namespace, folder: Path) -> bool:
    """Print the figures of one backend. Return whether all is as promised."""
    with ExitStack() as stack:
        url = f"disk://{folder}/cache"
        if backend != "disk":
            server = Server(backend, folder)
            server.start()
            stack.callback(server.kill)
            url = server.url
        calls = folder / "calls"
        calls.touch()
        workers = stack.enter_context(closing(Workers(url, options.processes, options.tasks, calls, library)))
        workers.ask("warm", 0.0)
        before = _count(url)
        rounds = [workers.ask(f"cold-{number}", options.seconds) for number in range(options.rounds)]
        counted = _count(url)
        counted.subtract(before)
        kills = [workers.ask(f"killed-{number}", options.seconds, kill=True) for number in range(options.kills)]
        long = [workers.ask("long", options.long)] if options.long else []
    worst = sorted(max(one.beyond) for one in rounds)
    print(
        f"{backend if library == 'ours' else library}: {options.rounds} rounds of {options.processes} processes x "
        f"{options.tasks} tasks, {sum(one.calls for one in rounds)} calls; slowest task beyond the call: "
        f"median {_ms(statistics.median(worst))}, worst {_ms(worst[-1])}; "
        f"processor time of all {_ms(statistics.median(one.busy for one in rounds))} a round"
        f"{_said_of(counted, options.rounds, options, library)}"
    )
    if kills:
        made, late = sum(one.calls for one in kills), max(max(one.beyond) for one in kills)
        print(f"  holder killed {len(kills)} times: {made} calls, latest answer {_ms(late)} beyond the call")
    if long:
        print(f"  a call of {options.long:g} s: {long[0].calls} calls, slowest {_ms(max(long[0].beyond))} beyond it")
    return (
        all(one.calls == 1 for one in rounds + long)
        and all(one.calls == 2 for one in kills)
        and not any(one.wrong for one in rounds + kills + long)
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the experiment and print its figures. Return 1 if something was not as promised, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["disk", "redis", "memcached"], action="append", help="default: all three")
    parser.add_argument(
        "--library", choices=["ours", *PEERS], default="ours", help="others run on Redis, without kills"
    )
    parser.add_argument("--rounds", type=int, default=50, help="how often a cold key is asked for")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long the call takes")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=50, help="in each process")
    parser.add_argument("--kills", type=int, default=5, help="how often the holder of the lease is killed")
    parser.add_argument(
        "--long", type=float, default=0.0, help="seconds of one more call, which is longer than many leases"
    )
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _worker(options.worker)
        return 0
    if options.library != "ours":
        options.backend, options.kills = ["redis"], 0  # their locks live for as long as the answer, or for ever
    good = True
    for backend in options.backend or ["disk", "redis", "memcached"]:
        with tempfile.TemporaryDirectory(prefix="one-call-") as folder:
            good = _experiment(backend, options.library, options, Path(folder)) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
