"""Eight processes use one store for long, in every way, while it and they fail at random: what is wrong afterwards.

    python -m reliability.soak [--backend disk|redis|memcached] [--minutes N] [--processes N] [--rate N] [--seed N]

The store is killed and started again, frozen, cut off, slowed down, filled, locked, removed; half of the processes are
killed now and then and replaced, any may be frozen, and on disk the clock is put forward and back. Every second process
comes through a proxy that fails as networks do. From time to time, and at the end, all pause, and:

- the account is the sum over a scan, and within the limit; ``verify`` finds nothing;
- no error reached a caller, no value was another key's, damaged, over, or one that had been replaced;
- what the store did not do, it did not do because of a fault, and does again soon after it;
- memory, file descriptors, threads and tasks of a process grow no more, see :data:`FLAT`, and nothing of them is left
  when its caches are closed.

Starts the servers and processes that it needs, and ends only these. Exits with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any, Awaitable, Callable, Counter, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from claude_force_cache import Cache, VerifyReport

from .proxy import FaultProxy
from .servers import Server
from .soak_worker import LIMIT, NAMESPACE, Job, cache_of

__all__ = ["FLAT", "Report", "main", "soak"]

FLAT = {"rss": 6 << 20, "blocks": 5_000, "fds": 4, "threads": 2, "tasks": 4}
"""By how much a gauge may be higher in the last quarter of a run than in the second, as the median over each: bytes of
resident memory, blocks that Python has allocated, open files, threads, tasks. The first quarter is for warming up; that
takes some minutes, so in a run of less than ten, in which it goes on beyond that, four times as much is allowed."""

_WARM_SECONDS = 600.0

_START_SECONDS = 180.0
_REST_SECONDS = 150.0
_EXACT_SECONDS = 30.0
_ATTEMPTS = 10
_REPORTS = 240
"""How often a process looks at itself in a run."""

_ARGUMENTS = {
    # What it acknowledged is there again when it comes back.
    "redis": ["--appendonly", "yes", "--appendfsync", "always"],
    # What is long lies in parts, and need not be so long for that; making room takes a listing, and a small table is
    # listed soon. When it comes back it is empty.
    "memcached": ["-I", "128k", "-o", "slab_chunk_max=65536,hashpower=13"],
}
_FILE_BYTES = 32 * 1024
_STEPS = (-3600.0, -5.0, 5.0, 3600.0)


class Report(NamedTuple):
    """What came of it. Times in seconds.

    :param operations: how many there were of each verb.
    :param cache: the statistics of all caches together.
    :param faults: how many there were of each kind.
    :param replaced: how many processes were killed and replaced.
    :param excused: how many operations the store did not carry out because of a fault.
    :param calm: for how long there was no fault, and none shortly before. One is also that the machine is so busy that
        a process does not get its turn.
    :param checks: how often everything was looked at.
    :param entries: how many entries there were at the end, and their size in bytes.
    :param remains: how many parts and entries without all parts there were, which eviction and killed writers leave.
    :param gauges: of each gauge the medians over the second and the last quarter, in the process that grew most.
    :param problems: what should not be.
    """

    backend: str
    seconds: float
    operations: Dict[str, int]
    cache: Dict[str, int]
    faults: Dict[str, int]
    replaced: int
    excused: int
    calm: float
    checks: int
    entries: Tuple[int, int]
    remains: int
    gauges: Dict[str, Tuple[float, float]]
    problems: List[str]


class _Process:
    """A process that works, and what it told so far."""

    def __init__(self, job: Job, process: asyncio.subprocess.Process) -> None:
        self.job = job
        self.process = process
        self.gauges: List[Dict[str, int]] = []
        self.counts: Dict[str, int] = {}
        self.excusable: List[Tuple[str, float, float, str]] = []
        self.late: List[Tuple[float, float]] = []
        self.problems: List[str] = []
        self._heard: Dict[str, asyncio.Event] = {"ready": asyncio.Event(), "paused": asyncio.Event()}
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def start(cls, job: Job) -> _Process:
        program = [sys.executable, "-m", "reliability.soak_worker", json.dumps(job)]
        pipe = asyncio.subprocess.PIPE
        process = cls(
            job,
            await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, limit=1 << 24, env=_environment()),
        )
        await process.hear("ready", _START_SECONDS)
        return process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def hear(self, what: str, seconds: float) -> None:
        """Return when it has said so.

        :raises RuntimeError: if it does not.
        """
        heard = self._heard[what]
        waiting = asyncio.ensure_future(heard.wait())
        await asyncio.wait([waiting, self._listening], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not heard.is_set():
            raise RuntimeError(f"process {self.job.slot} of the soak is not {what}: {self.problems}")
        heard.clear()

    async def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        with suppress(ConnectionError):
            await self.process.stdin.drain()

    async def kill(self) -> None:
        """Kill it, and return when everything that it said was heard."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._listening

    async def end(self) -> None:
        """Return when it has ended by itself."""
        await self.tell("stop")
        try:
            code = await asyncio.wait_for(self.process.wait(), _REST_SECONDS)
        except asyncio.TimeoutError:
            self.problems.append("it did not stop")
            await self.kill()
        else:
            if code:
                self.problems.append(f"it ended with {code}")
            await self._listening

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        while True:
            line = await self.process.stdout.readline()
            if not line:
                return
            ((kind, what),) = json.loads(line).items()
            if kind == "gauges":
                self.gauges.append(what)
            elif kind == "counts":
                self.counts = what
            elif kind == "excusable":
                self.excusable.append(what)
            elif kind == "late":
                self.late.append(what)
            elif kind == "problem":
                self.problems.append(what)
            else:
                self._heard[kind].set()


class _Soak:
    """One run on one backend."""

    def __init__(self, kind: str, folder: Path, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._kind = kind
        self._folder = folder
        self._seconds = 60.0 * options.minutes
        self._count: int = options.processes
        self._rate: float = options.rate
        self._choose = random.Random(options.seed)
        self._say = say
        self._offset = 0.0 if kind == "disk" else None
        self._server: Optional[Server] = None
        self._proxy: Optional[FaultProxy] = None
        self._url = f"disk://{folder}/cache?busy_timeout=2"
        self._processes: List[_Process] = []
        self._gone: List[_Process] = []
        self._faults: Counter[str] = Counter()
        self._windows: List[Tuple[float, float]] = []
        self._problems: List[str] = []
        self._checks = self._remains = 0
        self._entries: Tuple[int, int] = (0, 0)
        # Long enough between two faults for the effects of one to be over; in a short run there is no time for that.
        self._gap = min(20.0, self._seconds / 40)
        self._length = min(4.0, self._seconds / 20)

    async def run(self) -> Report:
        async with AsyncExitStack() as stack:
            if self._kind != "disk":
                self._server = Server(self._kind, self._folder, *_ARGUMENTS[self._kind])
                stack.callback(self._server.kill)
                self._server.start()
                self._url = self._server.url
                self._proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", self._server.port))
            stack.push_async_callback(self._kill_all)
            jobs = [self._job(slot, 0) for slot in range(self._count)]
            self._processes = list(await asyncio.gather(*(_Process.start(job) for job in jobs)))
            began = time.monotonic()
            await self._tell_all("go")
            await self._break(began + self._seconds)
            await self._check()
            await asyncio.gather(*(process.end() for process in self._processes))
            return self._report(began, time.monotonic())

    def _job(self, slot: int, generation: int) -> Job:
        url = self._url
        if self._proxy is not None and slot % 2:
            url = f"{self._kind}://{self._proxy.host}:{self._proxy.port}"
        seed, every = self._choose.getrandbits(32), self._seconds / _REPORTS
        return Job(url, slot, generation, seed, self._rate, every, self._offset)

    async def _kill_all(self) -> None:
        for process in self._processes:
            await process.kill()

    async def _tell_all(self, line: str) -> None:
        await asyncio.gather(*(process.tell(line) for process in self._processes))

    async def _break(self, end: float) -> None:
        """Let one thing after the other fail until then, and look at everything now and then."""
        faults = self._order()
        pause = min(120.0, self._seconds / 2)
        next_check = end - self._seconds + pause
        while True:
            gap = self._choose.uniform(0.5, 1.5) * self._gap
            if time.monotonic() + gap + 2 * self._length > end:
                await asyncio.sleep(max(0.0, end - time.monotonic()))
                return
            await asyncio.sleep(gap)
            if time.monotonic() > next_check:
                await self._check()
                await self._tell_all("go")
                next_check += pause
                continue
            name, fault = next(faults)
            seconds = self._choose.uniform(0.25, 1.75) * self._length
            begin = time.monotonic()
            await fault(seconds)
            self._windows.append((begin, time.monotonic()))
            self._faults[name] += 1
            self._say(f"{name} for {time.monotonic() - begin:.1f} s")

    def _order(self) -> Iterator[Tuple[str, Callable[[float], Awaitable[None]]]]:
        """Return the faults at random, none for the third time before each was there twice."""
        faults: List[Tuple[str, Callable[[float], Awaitable[None]]]] = [
            ("process killed", self._process_killed),
            ("process frozen", self._process_frozen),
        ]
        if self._kind == "disk":
            faults += [
                ("database locked", self._database_locked),
                ("files cannot grow", self._files_cannot_grow),
                ("folder removed", self._folder_removed),
                ("clock put forward or back", self._clock_step),
            ]
        else:
            faults += [("server killed", self._server_killed), ("server frozen", self._server_frozen)]
            for fault, most in (("latency", 0.3), ("silence", 0), ("refuse", 0), ("reset", 0), ("cut", 2000)):
                faults.append((f"network: {fault}", self._network(fault, most)))
        if self._kind == "redis":
            faults.append(("server full", self._redis_full))
        while True:
            self._choose.shuffle(faults)
            yield from list(faults)

    async def _process_killed(self, seconds: float) -> None:
        """The first half are killed now and then; the others live as long as the run, so that they can be measured."""
        slot = self._choose.randrange(self._count // 2)
        victim = self._processes[slot]
        await victim.kill()
        self._gone.append(victim)
        await asyncio.sleep(seconds)
        self._processes[slot] = await _Process.start(self._job(slot, victim.job.generation + 1))
        await self._processes[slot].tell("go")

    async def _process_frozen(self, seconds: float) -> None:
        process = self._choose.choice(self._processes)
        process.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.process.send_signal(signal.SIGCONT)

    async def _server_killed(self, seconds: float) -> None:
        assert self._server is not None
        self._server.kill()
        await asyncio.sleep(seconds)
        await asyncio.get_running_loop().run_in_executor(None, self._server.start)

    async def _server_frozen(self, seconds: float) -> None:
        assert self._server is not None
        self._server.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._server.signal(signal.SIGCONT)

    def _network(self, fault: str, most: float) -> Callable[[float], Awaitable[None]]:
        async def fail(seconds: float) -> None:
            assert self._proxy is not None
            await self._proxy.set(fault, self._choose.uniform(0, most))
            await asyncio.sleep(seconds)
            await self._proxy.set("pass")

        return fail

    async def _redis_full(self, seconds: float) -> None:
        import redis

        assert self._server is not None
        with closing(redis.Redis(port=self._server.port, socket_timeout=5)) as client:
            client.config_set("maxmemory", 1)
            await asyncio.sleep(seconds)
            client.config_set("maxmemory", 0)

    async def _database_locked(self, seconds: float) -> None:
        database = self._folder / "cache" / f"ns-{NAMESPACE}" / "cache.db"
        with closing(sqlite3.connect(str(database), timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(seconds)
            connection.execute("ROLLBACK")

    async def _files_cannot_grow(self, seconds: float) -> None:
        """No process can write a file beyond its first pages, as with a quota that is used up."""
        limits = {process: resource.prlimit(process.pid, resource.RLIMIT_FSIZE) for process in self._processes}
        for process, (_, hard) in limits.items():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_FILE_BYTES, hard))
        await asyncio.sleep(seconds)
        for process, limit in limits.items():
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)

    async def _folder_removed(self, seconds: float) -> None:
        aside = self._folder / "aside"
        (self._folder / "cache").rename(aside)
        shutil.rmtree(aside)
        await asyncio.sleep(seconds)

    async def _clock_step(self, seconds: float) -> None:
        assert self._offset is not None
        self._offset += self._choose.choice(_STEPS)
        await self._tell_all(f"clock {self._offset}")
        await asyncio.sleep(seconds)

    async def _check(self) -> None:
        """Let all pause, and look whether everything is as it should be."""
        await self._tell_all("pause")
        await asyncio.gather(*(process.hear("paused", _REST_SECONDS) for process in self._processes))
        offset = self._offset
        clock = None if offset is None else lambda: time.time() + offset
        async with cache_of(self._url, clock=clock) as cache:
            if self._kind == "memcached":
                # A writer that is killed, and eviction, leave parts of values; that is what this removes.
                await self._counted(cache, repair=True)
            report = await self._counted(cache, repair=False)
        if not report.consistent or report.remains:
            self._problems.append(f"check {self._checks}: verify found {report}")
        if self._kind == "disk":
            self._problems += [f"check {self._checks}: {path} is left behind" for path in self._strange_files()]
        self._checks += 1
        self._entries = (report.usage.entries, report.usage.bytes)
        memory = [process.gauges[-1]["rss"] / (1 << 20) for process in self._processes if process.gauges]
        self._say(
            f"check {self._checks}: {report.entries} entries, {report.bytes} bytes; "
            f"{statistics.mean(memory):.1f} MiB for a process"
        )

    async def _counted(self, cache: Cache[Any], *, repair: bool) -> VerifyReport:
        """Return what is counted, once the account agrees: what was under way may still happen, and entries expire."""
        deadline = time.monotonic() + _EXACT_SECONDS
        for attempt in itertools.count(1):
            report = await cache.verify(repair=repair)
            self._remains += len(report.remains)
            if report.corrupt or report.foreign:
                self._problems.append(f"check {self._checks}: verify found {report}")
            if report.usage.bytes > LIMIT:
                self._problems.append(f"check {self._checks}: {report.usage} is above the limit of {LIMIT} bytes")
            if report.consistent or (attempt >= _ATTEMPTS and time.monotonic() > deadline):
                break
            await asyncio.sleep(0.2)
        return report

    def _strange_files(self) -> List[str]:
        ours = {"cache.db", "cache.db-wal", "cache.db-shm", ".gitignore", "CACHEDIR.TAG", ".claude-force-cache"}
        return [str(path) for path in (self._folder / "cache").rglob("*") if path.is_file() and path.name not in ours]

    def _report(self, began: float, ended: float) -> Report:
        everybody = [*self._gone, *self._processes]
        counts: Counter[str] = Counter()
        excusable: List[Tuple[str, float, float, str]] = []
        windows = list(self._windows)
        problems = list(self._problems)
        for process in everybody:
            windows += process.late
            counts.update(process.counts)
            excusable += process.excusable
            problems += [f"process {process.job.slot}: {problem}" for problem in process.problems]
        windows = _merged([(begin, end + _aftermath(end - begin)) for begin, end in windows])
        unexplained = [
            f"{verb}, {start - began:.1f} s after the beginning and without a fault: {reason}"
            for verb, start, end, reason in excusable
            if not any(start <= last and end >= first for first, last in windows)
        ]
        problems += unexplained
        warm = self._seconds >= _WARM_SECONDS
        allowed = {name: more if warm else 4 * more for name, more in FLAT.items()}
        gauges, growing = _growth([process.gauges for process in self._processes[self._count // 2 :]], allowed)
        problems += growing
        cache = {name[6:]: count for name, count in counts.items() if name.startswith("cache ")}
        if cache["corrupt"]:
            problems.append(f"{cache['corrupt']} entries were corrupt")
        if warm and cache["hits"] * 20 < cache["hits"] + cache["misses"]:
            problems.append(f"{cache['hits']} hits and {cache['misses']} misses: this was hardly a cache")
        return Report(
            self._kind,
            round(ended - began, 1),
            {name: count for name, count in sorted(counts.items()) if not name.startswith("cache ")},
            cache,
            dict(sorted(self._faults.items())),
            len(self._gone),
            len(excusable) - len(unexplained),
            round(
                ended - began - sum(min(last, ended) - max(first, began) for first, last in windows if last > began), 1
            ),
            self._checks,
            self._entries,
            self._remains,
            gauges,
            problems,
        )


def _environment() -> Dict[str, str]:
    """Return what processes find: few of the C library's arenas, since memory that is free in one is no leak."""
    return {**os.environ, "MALLOC_ARENA_MAX": "2"}


def _aftermath(seconds: float) -> float:
    """Return for how long after a fault the store may not be used yet.

    A call that was under way may fail up to five seconds later. A store that refused writes is tried again after
    pauses that double, the last of which may be as long as all before it, but no longer than half a minute.
    """
    return 5.0 + min(30.0, seconds + 2.0)


def _merged(windows: Sequence[Tuple[float, float]]) -> List[Tuple[float, float]]:
    merged: List[Tuple[float, float]] = []
    for begin, end in sorted(windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _growth(
    series: Sequence[Sequence[Dict[str, int]]], allowed: Dict[str, int]
) -> Tuple[Dict[str, Tuple[float, float]], List[str]]:
    """Return the gauges of the process in which each grew most, and which grew more than is allowed."""
    gauges: Dict[str, Tuple[float, float]] = {}
    problems = []
    for name, more in allowed.items():
        pairs = []
        for looks in series:
            quarter = len(looks) // 4
            second, last = looks[quarter : 2 * quarter], looks[-quarter:]
            pairs.append(tuple(statistics.median(look[name] for look in part) for part in (second, last)))
        first, now = max(pairs, key=lambda pair: pair[1] - pair[0])
        gauges[name] = (first, now)
        if now - first > more:
            problems.append(f"{name} grew from {first:,.0f} to {now:,.0f}, by more than {more:,}")
    return gauges, problems


def soak(kind: str, options: argparse.Namespace, say: Callable[[str], None] = lambda line: None) -> Report:
    """Run it on one backend."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return asyncio.run(_Soak(kind, Path(folder), options, say).run())


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run it, and print what came of it. Return 1 if there was a problem, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["disk", "redis", "memcached"], action="append", help="default: all three")
    parser.add_argument("--minutes", type=float, default=20.0, help="for each backend, one after the other")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rate", type=float, default=10.0, help="operations a second, in each process")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args(arguments)
    problems = 0
    for kind in options.backend or ["disk", "redis", "memcached"]:
        print(f"{kind}: {options.minutes:g} minutes, {options.processes} processes, seed {options.seed}", flush=True)
        began = time.monotonic()

        def say(line: str, began: float = began) -> None:
            print(f"  {time.monotonic() - began:7.1f} s  {line}", flush=True)

        report = soak(kind, options, say)
        for name, value in report._asdict().items():
            if name != "problems":
                print(f"  {name:10} {value}")
        print("\n".join(f"  PROBLEM    {problem}" for problem in report.problems[:50]) or "  no problem", flush=True)
        problems += len(report.problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
