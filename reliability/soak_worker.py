"""One process of the soak: does everything that a cache can do, looks at every answer, and tells what it saw.

It works on one namespace through two caches, with an in-process tier and without, and on the bare store beside them.
Most keys belong to all processes; some are its own, and of these it knows what they may hold. What it tells are lines
of JSON on its standard output, what it is told are lines on its standard input; it ends with that.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, NamedTuple, Optional, Tuple, TypeVar, Union

from claude_force_cache import (
    MISSING,
    Backend,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    Cache,
    EntryTooLargeError,
    SyncBackend,
    load_backend,
    open_cache,
)

__all__ = ["LIMIT", "NAMESPACE", "Job", "cache_of"]

T = TypeVar("T")
Value = Dict[str, Any]
Verb = Callable[[], Coroutine[Any, Any, None]]

NAMESPACE = "soak"
LIMIT = 1_000_000
_SECRET = "of an experiment only"
_SCRATCH_LIMIT = 30_000

_LANES = 4
"""How many tasks do something at once: the first with keys of its own, the others with everybody's."""

_SHARED, _OWN = 300, 20
_TAGS = 8
_SIZES = (20, 400, 4_000, 40_000)
_LONG = 400_000
"""How many hexadecimal digits; half of it is left when they are compressed."""

_LIVES = (0.5, 5.0, 60.0, None, None)
_LATE = 10.0
"""Seconds in which a write that was given up may still happen: it is on its way to a server, or in a thread."""

_SLACK = 8.0
"""Seconds beyond its life in which a value may be seen, since its maker may have been frozen before it was stored."""

_STALE = 2.0
_LONGEST = 120.0
"""Seconds that a call may take. ``verify`` asks the store dozens of times, and may count three times."""

_SETTLES = 15.0
_TURN, _LATE_TURN = 0.1, 0.25
"""How often a process looks whether it gets its turn, and how many seconds too late is a fault of the machine."""


class Job(NamedTuple):
    """What a process is to do.

    :param url: the store.
    :param slot: its place among the processes, and the how many-eth in it.
    :param rate: operations a second.
    :param every: seconds between two looks at itself.
    :param offset: seconds by which its clock differs, or None if the store takes no clock.
    """

    url: str
    slot: int
    generation: int
    seed: int
    rate: float
    every: float
    offset: Optional[float]


class PlannedError(Exception):
    """Raised by a computation that is to fail, with the name of its key."""


class _Clock:
    """The time, and how far somebody has put it forward."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self) -> float:
        return time.time() + self.offset


def cache_of(url: str, *, clock: Optional[Callable[[], float]] = None, **options: object) -> Cache[Any]:
    """Return a cache as the processes have it."""
    given: Dict[str, Any] = {
        "namespace": NAMESPACE,
        "max_bytes": LIMIT,
        "timeout": 1,
        "lease": 1,
        "tier_bytes": 0,
        **options,
    }
    return open_cache(url, secrets=_SECRET, clock=clock, **given)


def _pad(key: str, number: int, length: int) -> str:
    return format(random.Random(f"{key} {number}").getrandbits(4 * length), f"0{length}x")


def _complaint(value: Any, key: str, now: float, stale: float = 0.0) -> Optional[str]:
    """Return what is wrong with a value that was found under a key, if anything is."""
    if value["key"] != key:
        return f"under {key} was the value of {value['key']}"
    if value["pad"] != _pad(key, value["number"], len(value["pad"])):
        return f"the value of {key} is damaged"
    if value["until"] is not None and now >= value["until"] + stale + _SLACK:
        return f"the value of {key} was over {now - value['until']:.1f} s ago"
    return None


class _Owned:
    """What a key of this process' own may hold: by number, and until when what was given up may still happen."""

    def __init__(self) -> None:
        self._may_be: Dict[int, float] = {}

    def written(self, number: int) -> None:
        """It holds this, unless something that was given up comes later."""
        self.emptied()
        self._may_be[number] = 0.0

    def emptied(self) -> None:
        """What it held is gone, but for what was given up a moment ago."""
        now = time.monotonic()
        self._may_be = {number: until for number, until in self._may_be.items() if until > now}

    def given_up(self, number: int) -> None:
        """It may hold this, now or later."""
        self._may_be[number] = time.monotonic() + _LATE

    def allows(self, number: int) -> bool:
        return number in self._may_be


class _Bare:
    """The verbs of a backend, whether it blocks or not."""

    def __init__(self, job: Job, clock: Optional[_Clock]) -> None:
        parts, given = BackendURL.parse(job.url)
        plugin = load_backend(parts.scheme)
        options = {option.name: option.convert(given.get(option.name)) for option in plugin.options}
        self._backend: Union[Backend, SyncBackend] = plugin.create(
            BackendSettings(url=parts, namespace=NAMESPACE, max_bytes=LIMIT, clock=clock, options=options)
        )
        self._threads = ThreadPoolExecutor(1)

    async def open(self) -> None:
        """Open it, as soon as the store answers: another one may hold it just now."""
        deadline = time.monotonic() + _LONGEST
        while True:
            try:
                await self.do("open")
                return
            except BackendUnavailableError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def do(self, verb: str, *arguments: Any, **options: Any) -> Any:
        method: Callable[..., Any] = getattr(self._backend, verb)
        if isinstance(self._backend, Backend):
            return await method(*arguments, **options)
        work = partial(method, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self) -> None:
        await self.do("close")
        self._threads.shutdown()


class _Worker:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._choose = random.Random(job.seed)
        self._clock = None if job.offset is None else _Clock(job.offset)
        self._now: Callable[[], float] = self._clock or time.time
        self._parts = job.url.startswith("memcached:")
        # A cache on Redis that has waited for another process goes on listening.
        self._listeners = 2 if job.url.startswith("redis:") else 0
        self._number = 0
        self._scratches = 0
        self._owned = [_Owned() for _ in range(_OWN)]
        self._running: Dict[int, Tuple[str, float]] = {}
        self._counts: Dict[str, int] = {}
        self._stopped = False
        self._verbs: List[Tuple[float, str, Verb]] = [
            (300, "get", self._get),
            (30, "get_entry", self._get_entry),
            (100, "get_many", self._get_many),
            (150, "set", self._set),
            (220, "fetch", self._fetch),
            (60, "delete", self._delete),
            (15, "invalidate", self._invalidate),
            (50, "touch", self._touch),
            (20, "lease", self._lease),
            (20, "usage", self._usage),
            (6, "scan", self._scan),
            (3, "verify", self._verify),
            (0.3, "clear", self._clear),
            (10, "scratch", self._scratch),
        ]

    async def run(self) -> None:
        """Work until told to stop."""
        self._going, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self._problem(f"the event loop was left an error: {context}"))
        told = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
        before = self._gauges()
        async with AsyncExitStack() as stack:
            self._tiered = cache_of(self._job.url, clock=self._clock, tier_bytes=500_000, tier_ttl=2)
            self._plain = cache_of(self._job.url, clock=self._clock)
            self._bare = _Bare(self._job, self._clock)
            for cache in (self._tiered, self._plain):
                await stack.enter_async_context(cache)
            stack.push_async_callback(self._bare.close)
            await self._bare.open()
            gc.freeze()
            lanes = [asyncio.ensure_future(self._lane(number)) for number in range(_LANES)]
            others = [asyncio.ensure_future(self._report()), asyncio.ensure_future(self._watch())]
            self._tell("ready", True)
            await self._obey(told)
            self._stopped = True
            self._going.set()
            await asyncio.gather(*lanes)
            for other in others:
                other.cancel()
            await asyncio.wait(others)
            self._tell("counts", self._totals())
        await self._settle(before)

    async def _obey(self, told: asyncio.StreamReader) -> None:
        while True:
            line = (await told.readline()).decode().split()
            if not line:
                os._exit(1)  # whoever started this is gone
            if line[0] == "go":
                self._going.set()
            elif line[0] == "pause":
                self._going.clear()
                await self._idle.wait()
                await self._at_rest()
                self._tell("paused", True)
            elif line[0] == "clock" and self._clock is not None:
                self._clock.offset = float(line[1])
            elif line[0] == "stop":
                return

    async def _at_rest(self) -> None:
        """Wait until nothing is left but what this process is made of; else that is a problem."""
        deadline = time.monotonic() + _SETTLES
        expected = _LANES + 3 + self._listeners  # with those that report and watch, and the one that this runs in
        while len(asyncio.all_tasks()) > expected:
            if time.monotonic() > deadline:
                self._problem(f"tasks are left, at rest: {self._left()}")
                return
            await asyncio.sleep(0.05)

    async def _settle(self, before: Dict[str, int]) -> None:
        """Wait until nothing is left of the caches, now that they are closed; else that is a problem."""
        deadline = time.monotonic() + _SETTLES
        while True:
            gauges = self._gauges()
            kept = {name: (before[name], gauges[name]) for name in ("fds", "threads", "tasks")}
            if all(now <= was for was, now in kept.values()):
                return
            if time.monotonic() > deadline:
                self._problem(f"after closing, before and now: {kept}, tasks {self._left()}")
                return
            await asyncio.sleep(0.05)

    def _left(self) -> List[str]:
        return sorted(repr(task)[:200] for task in asyncio.all_tasks() if task is not asyncio.current_task())

    async def _watch(self) -> None:
        """Tell when this process did not get its turn."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(_TURN)
            if time.monotonic() - began > _TURN + _LATE_TURN:
                self._tell("late", [began, time.monotonic()])

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._job.every)
            gc.collect()
            self._tell("gauges", self._gauges())
            self._tell("counts", self._totals())
            for name, began in list(self._running.values()):
                if time.monotonic() - began > _LONGEST:
                    self._problem(f"{name} has been running for {time.monotonic() - began:.0f} s")

    def _gauges(self) -> Dict[str, int]:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - asked often
            resident = int(file.read().split()[1])
        return {
            "rss": resident * resource.getpagesize(),
            "blocks": sys.getallocatedblocks(),
            "fds": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
        }

    def _totals(self) -> Dict[str, int]:
        totals = dict(self._counts)
        for cache in (self._tiered, self._plain):
            for name, count in asdict(cache.stats()).items():
                totals[f"cache {name}"] = totals.get(f"cache {name}", 0) + count
        return totals

    def _tell(self, kind: str, what: object) -> None:
        print(json.dumps({kind: what}), flush=True)

    def _problem(self, text: str) -> None:
        self._tell("problem", text)

    def _judge(self, value: Any, key: str, asked: float, stale: float = 0.0) -> None:
        complaint = _complaint(value, key, min(asked, self._now()), stale)
        if complaint is not None:
            self._problem(complaint)

    async def _lane(self, number: int) -> None:
        verbs = [(verb, name) for _, name, verb in self._verbs]
        weights = [weight for weight, _, _ in self._verbs]
        while True:
            await asyncio.sleep(self._choose.expovariate(self._job.rate / _LANES))
            await self._going.wait()
            if self._stopped:
                return
            if number == 0:
                verb, name = self._own, "own"
            else:
                ((verb, name),) = self._choose.choices(verbs, weights)
            self._running[number] = (name, time.monotonic())
            self._idle.clear()
            try:
                await self._carry_out(verb, name, cancels=number == 1 and self._choose.random() < 0.05)
            finally:
                del self._running[number]
                if not self._running:
                    self._idle.set()

    async def _carry_out(self, verb: Verb, name: str, *, cancels: bool) -> None:
        """Do it. In some cases the caller is cancelled on the way."""
        self._counts[name] = self._counts.get(name, 0) + 1
        task = asyncio.ensure_future(verb())
        if cancels:
            asyncio.get_running_loop().call_later(self._choose.uniform(0, 0.02), task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            self._counts["cancelled"] = self._counts.get("cancelled", 0) + 1
        except Exception as error:  # noqa: BLE001 - that is what it is all about
            self._problem(f"{name} raised {type(error).__name__}: {error}")

    async def _asking(self, verb: str, answer: Awaitable[T]) -> Optional[T]:
        """Return what a verb that asks the store itself returns; None if the store is not available."""
        began = time.monotonic()
        try:
            return await answer
        except BackendUnavailableError as error:
            self._unless_a_fault(verb, began, str(error))
            return None

    def _unless_a_fault(self, verb: str, began: float, reason: str) -> None:
        """Tell of what is a problem, unless a fault explains it."""
        self._tell("excusable", [verb, began, time.monotonic(), reason])

    def _cache(self) -> Cache[Any]:
        return self._choose.choice((self._tiered, self._plain))

    def _key(self) -> Tuple[Any, str]:
        """Return a key of everybody's, and its name: few are asked for often."""
        number = int(_SHARED * self._choose.random() ** 2)
        name = f"shared {number}"
        return (name if number % 2 else ["shared", number]), name

    def _new(self, name: str, life: Optional[float], *, may_be_long: bool = True) -> Value:
        self._number += 1
        number = self._job.slot << 40 | self._job.generation << 32 | self._number
        long = may_be_long and self._parts and self._choose.random() < 0.03
        length = _LONG if long else self._choose.choice(_SIZES)
        until = None if life is None else self._now() + life
        return {"key": name, "number": number, "until": until, "pad": _pad(name, number, length)}

    async def _get(self) -> None:
        key, name = self._key()
        asked = self._now()
        value = await self._cache().get(key)
        if value is not MISSING:
            self._judge(value, name, asked)

    async def _get_entry(self) -> None:
        key, name = self._key()
        asked = self._now()
        entry = await self._cache().get_entry(key, max_age=self._choose.choice((None, 5.0)))
        if entry is not None:
            self._judge(entry.value, name, asked)

    async def _get_many(self) -> None:
        keys = [self._key() for _ in range(self._choose.randint(2, 16))]
        asked = self._now()
        values = await self._cache().get_many([key for key, _ in keys])
        for position, value in values.items():
            self._judge(value, keys[position][1], asked)

    def _tags(self) -> List[str]:
        return [f"tag {self._choose.randrange(_TAGS)}"] if self._choose.random() < 0.3 else []

    async def _set(self) -> None:
        key, name = self._key()
        life = self._choose.choice(_LIVES)
        began = time.monotonic()
        stored = await self._cache().set(key, self._new(name, life), ttl=life, tags=self._tags())
        if not stored:
            self._unless_a_fault("set", began, "returned False")

    async def _fetch(self) -> None:
        key, name = self._key()
        life = self._choose.choice(_LIVES)
        options: Dict[str, Any] = self._choose.choice(
            (
                {},
                {"tags": self._tags()},
                {"stale_while_revalidate": _STALE},
                {"stale_if_error": _STALE},
                {"refresh_ahead": 0.5},
                {"refresh": True},
                {"max_age": 2.0},
            )
        )

        async def make() -> Value:
            # Rarely so long that the lease is renewed.
            seconds = 1.2 if self._choose.random() < 0.02 else self._choose.choice((0.0, 0.01, 0.05))
            await asyncio.sleep(seconds)
            if self._choose.random() < 0.05:
                raise PlannedError(name)
            return self._new(name, life)

        asked = self._now()
        try:
            entry = await self._cache().fetch(key, make, ttl=life, **options)
        except PlannedError as error:
            if error.args != (name,):
                self._problem(f"who asked for {name} was told of the failure of {error.args}")
            return
        self._judge(entry.value, name, asked, _STALE if entry.stale else 0.0)

    async def _delete(self) -> None:
        await self._asking("delete", self._cache().delete(self._key()[0]))

    async def _invalidate(self) -> None:
        await self._asking("invalidate", self._cache().invalidate(f"tag {self._choose.randrange(_TAGS)}"))

    async def _clear(self) -> None:
        await self._asking("clear", self._cache().clear())

    async def _usage(self) -> None:
        usage = await self._asking("usage", self._cache().usage())
        if usage is not None and not (usage.bytes <= LIMIT and usage.entries >= 0):
            self._problem(f"{usage} is above the limit of {LIMIT} bytes")

    async def _scan(self) -> None:
        async def scan() -> None:
            async for stored in self._cache().scan():
                if stored.state in {"corrupt", "foreign"}:
                    self._problem(f"a scan found {stored.key} to be {stored.state}")
                elif stored.value is not None:
                    key = stored.value["key"]
                    group, number = key.split()
                    asked = key if group != "shared" or int(number) % 2 else ["shared", int(number)]
                    if await self._plain.stored_key(asked) != stored.key:
                        self._problem(f"a scan found the value of {key} under another key")

        await self._asking("scan", scan())

    async def _verify(self) -> None:
        report = await self._asking("verify", self._cache().verify())
        if report is not None and (report.corrupt or report.foreign):
            self._problem(f"verify found {report}")

    async def _touch(self) -> None:
        """Give an entry another life in the store; in its seal it keeps its own."""
        name = await self._plain.stored_key(self._key()[0])

        async def touch() -> None:
            entry = await self._bare.do("get", name)
            if entry is not None:
                version = self._choose.choice((None, entry.version))
                await self._bare.do("touch", name, ttl=self._choose.choice((2.0, 60.0)), version=version)

        await self._asking("touch", touch())

    async def _lease(self) -> None:
        """Do what whoever has a lease does: add, touch, and delete what is still the same."""
        name = f"soak-{self._choose.randrange(3)}.lease"

        async def lease() -> None:
            record = os.urandom(40)
            if not await self._bare.do("add", name, record, ttl=2.0):
                return
            for _ in range(2):
                entry = await self._bare.do("get", name)
                if entry is not None and entry.value == record:
                    await self._bare.do("touch", name, ttl=2.0, version=entry.version)
            entry = await self._bare.do("get", name)
            if entry is not None and entry.value == record:
                await self._bare.do("delete", name, version=entry.version)

        await self._asking("lease", lease())

    async def _scratch(self) -> None:
        """Open a cache that nobody else has, fill it beyond its limit, look whether the account is exact, close it."""
        self._scratches += 1
        where = f"scratch-{self._job.slot}-{self._job.generation}-{self._scratches % 3}"
        options: Dict[str, object] = {"namespace": where, "max_bytes": _SCRATCH_LIMIT, "tier_bytes": 10_000}

        async def use() -> None:
            async with cache_of(self._job.url, clock=self._clock, **options) as cache:
                await cache.clear()
                values = [self._new("scratch", None, may_be_long=False) for _ in range(6)]
                stored = [await cache.set(number, value, ttl=None) for number, value in enumerate(values)]
                try:
                    if await cache.set("long", {"pad": os.urandom(_SCRATCH_LIMIT).hex()}):
                        self._problem(f"{where} took a value above its limit")
                except EntryTooLargeError:
                    pass
                usage = await cache.usage()
                sizes = [entry.size async for entry in cache.scan()]
                emptied = (await cache.clear(), await cache.usage())
            if not all(stored):
                raise BackendUnavailableError("a scratch was not stored")
            if usage.bytes > _SCRATCH_LIMIT:
                self._problem(f"{where} has {usage}, above the limit of {_SCRATCH_LIMIT} bytes")
            if (len(sizes), sum(sizes)) != tuple(usage) or not sizes or emptied != (len(sizes), (0, 0)):
                # A server that died on the way had forgotten everything.
                self._unless_a_fault("scratch", began, f"{where}: {usage}, a scan found {sizes}, then {emptied}")

        began = time.monotonic()
        await self._asking("scratch", use())

    async def _own(self) -> None:
        """Do something with a key that only this process has, through the same cache every time."""
        index = self._choose.randrange(_OWN)
        cache = self._tiered if index % 2 else self._plain
        name = f"own-{self._job.slot}-{self._job.generation} {index}"
        tag = f"own-{self._job.slot}-{self._job.generation}-{index % 2}"
        owned = self._owned[index]
        verb = self._choose.choices(("get", "set", "fetch", "delete", "invalidate"), (40, 30, 15, 10, 5))[0]
        if verb == "get":
            value = await cache.get(name)
            if value is not MISSING:
                self._judge_own(value, name, owned)
        elif verb == "set":
            new = self._new(name, None)
            began = time.monotonic()
            if await cache.set(name, new, ttl=None, tags=[tag]):
                owned.written(new["number"])
            else:
                owned.given_up(new["number"])
                self._unless_a_fault("set", began, "returned False")
        elif verb == "fetch":
            new = self._new(name, None)

            async def make() -> Value:
                owned.given_up(new["number"])  # nobody tells whether it was stored
                return new

            entry = await cache.fetch(name, make, ttl=None, tags=[tag])
            self._judge_own(entry.value, name, owned)
        elif verb == "delete":
            if await self._asking("delete", cache.delete(name)) is not None:
                owned.emptied()
        elif await self._asking("invalidate", cache.invalidate(tag)) is not None:
            for each in self._owned[index % 2 :: 2]:
                each.emptied()

    def _judge_own(self, value: Any, name: str, owned: _Owned) -> None:
        self._judge(value, name, self._now())
        if not owned.allows(value["number"]):
            self._problem(f"{name} holds {value['number']}, which was replaced or deleted")


class _Complaints(logging.Handler):
    """Takes what asyncio and Python log for a problem; what a cache says of outages is none."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("claude_force_cache"):
            self._tell(f"{record.name} logged: {self.format(record)}")


def main() -> None:
    worker = _Worker(Job(*json.loads(sys.argv[1])))
    problem = worker._problem
    logging.getLogger().addHandler(_Complaints(problem))
    sys.unraisablehook = lambda error: problem(f"nobody could be told of {error.exc_value!r} in {error.object!r}")
    threading.excepthook = lambda error: problem(f"a thread died of {error.exc_value!r}")
    asyncio.run(worker.run())


if __name__ == "__main__":
    main()
