"""What an outage costs: a store fails in some way and comes back, under a cache and under an orchestrator.

    python -m reliability.outages [--fault WORDS] [--client cache|orchestrator] [--quick] [--json]

Each fault is tried in a process of its own, which starts the servers that it needs, and ends only these. Four tasks
at once ask for something new until the store is given up; then many ask one after the other; then the store is
mended, and new ones are asked until it is used again. All that was answered meanwhile is asked a second time.
Exits with 1 if a task failed, an answer was wrong or paid twice, the log had more lines than changes, a task waited
longer than the budgets allow, or the store was not used again in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Counter, Dict, List, NamedTuple, Optional, Sequence, Type

from claude_force_cache import BackendUnavailableError, Cache, hookimpl, open_cache

from .faults import FAULTS, Fault, Site
from .messages_api import MessagesAPI, answer_to

__all__ = ["CLIENTS", "Outage", "main", "observe"]

_AT_ONCE = 4
_SEEDS = 3
_ROUNDS = 100
"""How many times four tasks ask at most until the store is given up."""

_PATIENCE = 60.0
"""Seconds that a store may take to be used again."""

_BUDGET = 0.25
"""Seconds that a look-up may cost, which is the default of the option ``timeout``."""

_AFTER_BUDGET = 5 * _BUDGET
"""Seconds that it may cost to store, which is four times that, and to give the lease back."""

_BUSY = 0.15
"""Seconds by which a machine with other work to do may be late with each of these."""

_GIVEN_UP = 0.001
"""Seconds that a store may cost that was given up."""

_RECOVERY = 3.0
"""Seconds after which a store has to be used again that works again: it is tried once a second."""

_LASTS = 2.5
"""Seconds for which a store stays broken after it was given up: it is tried twice, and must not seem to be back."""

_MOST_CHANGES = 3
"""A store refuses writes, is gone, and is back."""

_GONE = "is not available, going on without it"
_REFUSES = "takes no writes, going on without them"


@dataclass
class Outage:
    """What was seen of one fault. Times in seconds; None for what did not happen.

    :param tasks: how many were asked while the store was broken, each of them twice.
    :param failed: how many brought an error, ever.
    :param wrong: how many answers belonged to another task.
    :param paid_twice: how many answers that were made meanwhile had to be made again.
    :param late: of those, how many because the store, which was in use, did not answer the look-up within its budget.
    :param given_up: from the beginning of the fault until the store, or writing to it, was given up.
    :param before_call: until then, the longest that a task waited before its call was made.
    :param after_call: until then, the longest that a task waited after its answer had been made.
    :param usual: before the fault, what a task with a new answer took longer than one without a cache. Of those that
        ran in turn, the lower quartiles, so that other work on the machine is left out.
    :param added: the same after the store was given up.
    :param read_meanwhile: whether what had been stored before was found during the fault.
    :param read_again: from the end of the fault to the first answer that another process had stored.
    :param written_again: from the end of the fault to the first answer that another process found.
    :param changes: how often listeners were told that the store is gone, refuses writes, or is back.
    :param errors: how many operations the cache counted as failed.
    :param lines: what the log had.
    """

    fault: str
    client: str
    tasks: int = 0
    failed: int = 0
    wrong: int = 0
    paid_twice: int = 0
    late: int = 0
    given_up: Optional[float] = None
    before_call: float = 0.0
    after_call: float = 0.0
    usual: float = 0.0
    added: float = 0.0
    read_meanwhile: bool = False
    read_again: Optional[float] = None
    written_again: Optional[float] = None
    changes: int = 0
    errors: int = 0
    lines: List[str] = field(default_factory=list)

    def problems(self) -> List[str]:
        """Return what is not as it was promised."""
        fault = FAULTS[self.fault]
        # A store that is just fast enough is too late for some look-ups, and each of these is a miss.
        counts = {"failed": self.failed, "wrong": self.wrong, "paid_twice": self.paid_twice}
        counts["paid_twice"] -= self.late if fault.loses == "some" else 0
        found = [f"{count} {name}" for name, count in counts.items() if count]
        if self.read_again is None or self.written_again is None:
            found.append("the store was not used again")
        if fault.loses in {"all", "writes"} and self.given_up is None:
            found.append("the store was not given up")
        if fault.loses == "nothing" and self.given_up is not None:
            found.append("the store was given up")
        if fault.loses == "writes" and not self.read_meanwhile:
            found.append("what was stored before could not be read")
        if len(self.lines) != self.changes:
            found.append(f"{len(self.lines)} log lines for {self.changes} changes")
        if self.changes > _MOST_CHANGES:
            found.append(f"{self.changes} changes, for one outage")
        if self.changes and not self.errors:
            found.append("no error was counted")
        # What still works costs what it does.
        limits = {"before_call": _BUDGET + _BUSY, "after_call": _AFTER_BUDGET + _BUSY, "added": _GIVEN_UP}
        limits["added"] += 0.0 if fault.loses == "all" else self.usual
        limits.update(read_again=_RECOVERY, written_again=_RECOVERY)
        for name, limit in limits.items():
            seconds = getattr(self, name)
            if seconds is not None and seconds > limit and not (name == "added" and self.given_up is None):
                found.append(f"{name} {1000 * seconds:.1f} ms, above {1000 * limit:.1f}")
        return found


class _Log(logging.Handler):
    """Keeps the lines of all loggers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


class _Listener:
    """Counts the changes that a cache tells of."""

    def __init__(self) -> None:
        self.changes = 0

    @hookimpl
    def claude_force_cache_outage(self, error: BackendUnavailableError) -> None:
        self.changes += 1

    @hookimpl
    def claude_force_cache_recovery(self) -> None:
        self.changes += 1


class _CacheClient:
    """Asks a cache for what costs a call.

    ``calls`` counts the calls by task, ``called`` has the moment of the last one.
    """

    def __init__(self, url: str, api: MessagesAPI) -> None:
        self.calls: Counter[str] = Counter()
        self.called: Dict[str, float] = {}
        self.cache: Cache[Any] = open_cache(url)

    async def __aenter__(self) -> _CacheClient:
        await self.cache.open()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self.cache.close()

    async def ask(self, task: str, *, cached: bool = True) -> str:
        async def call() -> str:
            self.calls[task] += 1
            self.called[task] = time.perf_counter()
            return answer_to(task)

        if not cached:
            return await call()
        answer: str = await self.cache.get_or_compute(task, call)
        return answer


class _OrchestratorClient:
    """Asks an agent, likewise. The API is on loopback."""

    def __init__(self, url: str, api: MessagesAPI) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self._api = api
        self._key = f"sk-ant-{id(self)}"
        self.calls = api.calls[self._key]
        self.called = api.called

    async def __aenter__(self) -> _OrchestratorClient:
        from claude_force_orchestrator import AsyncAgentOrchestrator

        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            configuration = _project(folder)
            self._orchestrator = AsyncAgentOrchestrator(
                configuration,
                self._key,
                base_url=self._api.url,
                cache=self._url,
                enable_tracking=False,
            )
            await stack.enter_async_context(self._orchestrator)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self._stack.aclose()

    @property
    def cache(self) -> Cache[Any]:
        assert self._orchestrator.cache is not None
        return self._orchestrator.cache

    async def ask(self, task: str, *, cached: bool = True) -> str:
        result = await self._orchestrator.execute_agent("worker", task, cache=None if cached else "no-store")
        if result.error is not None:
            raise result.error
        return result.output


def _project(folder: Path) -> Path:
    (folder / "worker.md").write_text("You answer.\n", encoding="utf-8")
    path = folder / "claude.json"
    table = {"version": "1.0.0", "name": "outages", "agents": {"worker": {"file": "worker.md"}}}
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


CLIENTS = {"cache": _CacheClient, "orchestrator": _OrchestratorClient}
"""Who asks."""


class _Asked(NamedTuple):
    """What one task took: until its call was made, from then on, and altogether."""

    before: float
    after: float
    total: float


class _Run:
    """One fault under one client."""

    def __init__(self, fault: Fault, client: str, *, quick: bool) -> None:
        self.seen = Outage(fault.name, client)
        self._fault = fault
        self._make: Any = CLIENTS[client]
        self._api = MessagesAPI()
        self._quick = quick
        self._meanwhile: List[str] = []
        self._plain: List[_Asked] = []

    async def run(self, folder: Path) -> Outage:
        log, listener = _Log(), _Listener()
        logging.getLogger().addHandler(log)
        self._lines = log.lines
        # What is imported late is imported now: somebody who may not read it could be who runs this later.
        async with self._api, self._client(f"disk://{folder}/imports") as anything:
            await anything.ask("anything")
        try:
            async with self._api, self._fault.site(folder) as site, AsyncExitStack() as stack:
                if not (self._fault.first and self._fault.loses == "all" and self._fault.backend != "disk"):
                    async with self._client(site.direct) as other:
                        for number in range(_SEEDS):
                            await other.ask(f"seed {number}")
                if self._fault.first:
                    await site.begin()
                self._subject = self._client(site.url, "")
                self._subject_calls = self._subject.calls
                if self._fault.first:
                    began = time.perf_counter()
                # A client whose store is absent tells at once, so that nobody can have registered before.
                await stack.enter_async_context(self._subject)
                self._subject.cache.register(listener)
                listener.changes += len(self._lines)
                await self._calibrate()
                if not self._fault.first:
                    self.seen.usual = await self._one_by_one("healthy {}")
                    began = time.perf_counter()
                    await site.begin()
                await self._break(began)
                self.seen.added = await self._one_by_one("broken {}", keep=True)
                await self._last()
                await self._again()
                await site.end()
                await self._mend(site)
                await self._again()
                self.seen.errors = self._subject.cache.stats().errors
            self.seen.changes = listener.changes
            self.seen.lines = list(log.lines)
        finally:
            logging.getLogger().removeHandler(log)
        return self.seen

    def _client(self, url: str, options: str = "tier_bytes=0") -> Any:
        return self._make(url + ("&" if "?" in url else "?") + options if options else url, self._api)

    async def _ask(self, task: str, client: Optional[Any] = None, *, cached: bool = True) -> Optional[_Asked]:
        client = self._subject if client is None else client
        began = time.perf_counter()
        try:
            answer = await client.ask(task, cached=cached)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            self.seen.failed += 1
            print(f"{task}: {error!r}", file=sys.stderr)
            return None
        ended = time.perf_counter()
        self.seen.wrong += answer != answer_to(task)
        called = max(began, client.called.get(task, began))
        return _Asked(called - began, ended - called, ended - began)

    async def _calibrate(self) -> None:
        """Find out what tasks wait before and after their call when there is no cache."""
        for number in range(3 if self._quick else 10):
            tasks = [self._ask(f"plain {number} {index}", cached=False) for index in range(_AT_ONCE)]
            self._plain += [asked for asked in await asyncio.gather(*tasks) if asked is not None]

    async def _one_by_one(self, name: str, *, keep: bool = False) -> float:
        """Return what a task takes longer with a cache than without one, asked in turn, in the lower quartile."""
        taken: Dict[bool, List[float]] = {False: [], True: []}
        # What is slow takes long, and the fewer tasks say as much.
        for number in range(20 if self._quick or self._fault.loses == "some" else 100):
            for cached in (False, True):
                task = name.format(number) if cached else f"without {name.format(number)}"
                asked = await self._ask(task, cached=cached)
                taken[cached] += [asked.total] if asked else []
            if keep:
                self._meanwhile.append(name.format(number))
        return statistics.quantiles(taken[True])[0] - statistics.quantiles(taken[False])[0]

    async def _break(self, began: float) -> None:
        """Ask until the store is given up; or for a while, if it need not be."""
        awaited = {"all": [_GONE], "writes": [_GONE, _REFUSES]}.get(self._fault.loses, [])
        seen = self.seen
        usual = _Asked(*(statistics.median(column) for column in zip(*self._plain)))
        for number in range(_ROUNDS if awaited else 10):
            if any(sign in line for line in self._lines for sign in awaited):
                seen.given_up = time.perf_counter() - began
                break
            tasks = [f"breaking {number} {index}" for index in range(_AT_ONCE)]
            for asked in await asyncio.gather(*map(self._ask, tasks)):
                if asked is not None:
                    seen.before_call = max(seen.before_call, asked.before - usual.before)
                    seen.after_call = max(seen.after_call, asked.after - usual.after)
            self._meanwhile += tasks
        before = sum(self._subject_calls.values())
        if not (self._fault.first and self._fault.backend != "disk"):
            await self._ask("seed 0")
            seen.read_meanwhile = sum(self._subject_calls.values()) == before
        seen.tasks = len(self._meanwhile)

    async def _last(self) -> None:
        """Go on asking while a store that was given up is tried again."""
        end = time.perf_counter() + (0.0 if self.seen.given_up is None else _LASTS)
        while time.perf_counter() < end:
            self._meanwhile.append(f"lasting {len(self._meanwhile)}")
            await self._ask(self._meanwhile[-1])
            await asyncio.sleep(0.05)

    async def _again(self) -> None:
        """Ask for a second time what was answered meanwhile."""
        stats = self._subject.cache.stats
        for task in self._meanwhile:
            calls, errors = self._subject_calls[task], stats().errors
            await self._ask(task)
            if self._subject_calls[task] != calls:
                self.seen.paid_twice += 1
                self.seen.late += self.seen.given_up is None and stats().errors != errors
        self.seen.tasks = len(self._meanwhile)

    async def _mend(self, site: Site) -> None:
        """Ask until an answer of another process is found, and one that is new here is found by another process."""
        seen = self.seen
        ended = time.perf_counter()
        async with self._client(site.direct) as other:
            number = 0
            while seen.read_again is None or seen.written_again is None:
                if time.perf_counter() - ended > _PATIENCE:
                    return
                number += 1
                theirs, ours = f"theirs {number}", f"ours {number}"
                if seen.read_again is None:
                    await self._ask(theirs, other)
                    await self._ask(theirs)
                    if not self._subject_calls[theirs]:
                        seen.read_again = time.perf_counter() - ended
                if seen.written_again is None:
                    await self._ask(ours)
                    moment = time.perf_counter()
                    await self._ask(ours, other)
                    if not other.calls[ours]:
                        seen.written_again = moment - ended
                await asyncio.sleep(0.01)


async def observe(fault: Fault, client: str, *, quick: bool = False) -> Outage:
    """Return what was seen of a fault.

    :param quick: with fewer tasks, for a test.
    :raises PermissionError: if the fault can be made by root alone.
    """
    os.environ["CLAUDE_CACHE_SECRET"] = "of an experiment only, and long"
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        return await _Run(fault, client, quick=quick).run(Path(folder))


def _table(outages: Sequence[Outage]) -> str:
    def seconds(value: Optional[float]) -> str:
        return "-" if value is None else f"{value:.2f} s"

    columns = ("given up", "before call", "after call", "usual", "then added", "read again", "written")
    rows = [f"{'fault':32}" + "".join(f"{name:>13}" for name in columns) + "  tasks failed  twice   late  lines"]
    for client in CLIENTS:
        rows += [f"-- {client}"] if any(one.client == client for one in outages) else []
        for one in outages:
            if one.client == client:
                times = [seconds(one.given_up), *(f"{1000 * t:.1f} ms" for t in (one.before_call, one.after_call))]
                times += [f"{1e6 * t:.0f} us" for t in (one.usual, one.added)]
                times += [seconds(one.read_again), seconds(one.written_again)]
                counts = (one.tasks, one.failed, one.paid_twice, one.late, len(one.lines))
                rows += [f"{one.fault:32}" + "".join(f"{t:>13}" for t in times) + "".join(f"{n:7}" for n in counts)]
    return "\n".join(rows)


def _observed(fault: str, client: str, *, quick: bool) -> Optional[Outage]:
    """Return what a process of its own sees of a fault, or None if only root can make it."""
    command = [sys.executable, "-W", "ignore", "-m", "reliability.outages", "--one", fault, "--client", client]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False, stdout=subprocess.PIPE)
    if done.returncode == os.EX_NOPERM:
        return None
    if done.returncode:
        raise RuntimeError(f"{fault}: the experiment itself failed")
    return Outage(**json.loads(done.stdout))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the experiment, print its figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", default="", help="words that the fault's name contains")
    parser.add_argument("--client", choices=list(CLIENTS), help="who asks; both by default")
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", choices=list(FAULTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        try:
            seen = asyncio.run(observe(FAULTS[options.one], options.client, quick=options.quick))
        except PermissionError as error:
            print(error, file=sys.stderr)
            return os.EX_NOPERM
        print(json.dumps(asdict(seen)))
        return 0
    outages: List[Outage] = []
    for client in [options.client] if options.client else CLIENTS:
        for name in FAULTS:
            if options.fault in name:
                one = _observed(name, client, quick=options.quick)
                outages += [one] if one else []
    print(json.dumps([asdict(one) for one in outages], indent=2) if options.json else _table(outages))
    problems = [f"{one.fault}, {one.client}: {problem}" for one in outages for problem in one.problems()]
    print("\n".join(problems) or "no problem", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
