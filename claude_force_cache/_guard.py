"""The guard: what a store may cost. A time budget for each call, and a circuit breaker under it.

An outage means a slower answer, never a failed one: after a few failures in a row the store is not asked any
more, which costs microseconds, while one probe a second in the background finds out when it is back.

A store may answer and yet take nothing: one that is full, a disk that somebody has locked. So writes are counted by
themselves, and given up by themselves; then one of them a second is tried in the background, in nobody's way. What is
raised for a part of a store, :class:`PartlyUnavailableError`, says nothing about the rest and is not counted. Neither
is a small record, which a store may have room for that takes nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any, Awaitable, Callable, Dict, Optional, Set, TypeVar

from typing_extensions import Protocol

from ._errors import BackendUnavailableError, CacheError, PartlyUnavailableError

__all__ = ["STORE_FACTOR", "Call", "Guard"]

T = TypeVar("T")

STORE_FACTOR = 4
"""How many times the budget of a look-up a store may cost: it writes, and what it saves was paid for."""

_FAILURES_TO_OPEN = 3
_PROBE_EVERY = 1.0

_STALL = 0.01
"""Seconds that a timer has to be late for the event loop to have stood still."""

_INSIST = 0.05
"""Seconds after which a call that was cancelled and goes on is cancelled once more."""

_logger = logging.getLogger("claude_force_cache")


class Call(Protocol):
    """Calls a verb of the backend within a multiple of the budget of a look-up."""

    def __call__(
        self, verb: Callable[[], Awaitable[T]], factor: int = 1, *, writes: bool = False, counts: bool = True
    ) -> Awaitable[T]:
        """Return what ``verb`` returns."""


if sys.version_info >= (3, 11):

    def _asked(task: asyncio.Task[Any]) -> int:
        """Return how often it was asked of a task to end."""
        return task.cancelling()

    def _unask(task: asyncio.Task[Any]) -> int:
        return task.uncancel()

else:  # a task does not count, and ours hides a cancellation that comes in the same turn of the loop

    def _asked(task: asyncio.Task[Any]) -> int:
        return 0

    def _unask(task: asyncio.Task[Any]) -> int:
        return 0


class _Deadline:
    """Until when a call may take. After that its task is cancelled, again and again until the call is over.

    When the loop itself stood still, the answer may have come and not have been read, and the timer would
    come first. So the time of a stall does not count, up to once more the budget.
    """

    __slots__ = ("_asked_before", "_extension", "_task", "cancels", "due")

    def __init__(self, task: asyncio.Task[Any], due: float, budget: float) -> None:
        self._task = task
        self._asked_before = _asked(task)
        self._extension = budget
        self.due = due
        self.cancels = 0

    def look(self, now: float) -> None:
        """Cancel the call if it is too late."""
        if now < self.due:
            return
        late = min(now - self.due, self._extension)
        if late < _STALL or self.cancels:
            self.cancels += 1
            self._task.cancel()
            self.due = now + _INSIST
        else:
            self._extension -= late
            self.due = now + late

    def take_back(self) -> bool:
        """Take the cancellations back, and return whether nobody else has cancelled the task."""
        for _ in range(self.cancels):
            _unask(self._task)
        self.cancels = 0
        return _asked(self._task) <= self._asked_before


class _Watch:
    """The deadlines of the calls that are under way in one event loop, with one timer for all.

    To set a timer for each call, or to open a cancel scope, would cost more than a call that is answered at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._deadlines: Set[_Deadline] = set()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._next = 0.0

    def begin(self, budget: float) -> _Deadline:
        """Watch the running task from now on."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101 - a coroutine that waits is in one
        deadline = _Deadline(task, self._loop.time() + budget, budget)
        self._deadlines.add(deadline)
        if self._timer is None or deadline.due < self._next:
            self._ring_at(deadline.due)
        return deadline

    def end(self, deadline: _Deadline) -> None:
        """Watch it no more."""
        self._deadlines.discard(deadline)
        if deadline.cancels:
            deadline.take_back()

    def _ring_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        for deadline in tuple(self._deadlines):
            deadline.look(now)
        if self._deadlines:
            self._ring_at(min(deadline.due for deadline in self._deadlines))


class Guard:
    """Guards the calls to one store.

    :param name: what to call the store in log lines and errors; holds no password.
    :param probe: returns if the store works, raises BackendUnavailableError otherwise.
    :param changed: called with the error when the store goes away, and with None when it is back.
    :param budget: seconds within which a store has to answer the probe to be used again.
    :param clock: seconds that only go forward.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], Awaitable[None]],
        changed: Callable[[Optional[BackendUnavailableError]], None],
        budget: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._probe = probe
        self._changed = changed
        self._budget = budget
        self._clock = clock
        self._failures = {False: 0, True: 0}  # in a row, of reads and of writes
        self._last: Optional[BackendUnavailableError] = None
        self._refusal: Optional[BackendUnavailableError] = None
        self._next_probe = 0.0
        self._probes: Set[asyncio.Future[None]] = set()
        self._watches: Dict[asyncio.AbstractEventLoop, _Watch] = {}

    @property
    def outage(self) -> Optional[BackendUnavailableError]:
        """The error that opened the breaker, or None while the store is used."""
        return self._last

    @property
    def refusal(self) -> Optional[BackendUnavailableError]:
        """The error for which writes were given up, or None while they are tried."""
        return self._refusal

    async def call(
        self, verb: Callable[[], Awaitable[T]], budget: float, *, writes: bool = False, counts: bool = True
    ) -> T:
        """Return what ``verb`` returns, within ``budget`` seconds.

        :param writes: whether it needs more of the store than that it can be read. While writes are given up, it may
            be carried out after the error was raised.
        :param counts: whether it shows how the store is.
        :raises BackendUnavailableError: if the store failed, took longer, or is not asked at the moment.
        """
        if self._last is not None:
            self._in_background(self._try_again)
            raise type(self._last)(str(self._last))  # a new one each time: an error that is raised again grows
        if writes and self._refusal is not None:
            if counts:
                self._in_background(lambda: self._try_writing(verb, budget))
            raise type(self._refusal)(str(self._refusal))
        return await self._call(verb, budget, writes, counts)

    async def _call(self, verb: Callable[[], Awaitable[T]], budget: float, writes: bool, counts: bool) -> T:
        before = self._failures[writes]
        watch = self._watch()
        deadline = watch.begin(budget)
        try:
            result = await verb()
        except PartlyUnavailableError:
            raise
        except BackendUnavailableError as error:
            if counts:
                self._failed_since(before, error, writes)
            raise
        except asyncio.CancelledError:
            if not deadline.cancels or not deadline.take_back():
                raise
            late = BackendUnavailableError(f"{self._name} did not answer within {budget:g} seconds")
            if counts:
                self._failed_since(before, late, writes)
            raise late from None
        finally:
            watch.end(deadline)
        if counts:
            self._failures[writes] = 0
        return result

    def _watch(self) -> _Watch:
        loop = asyncio.get_running_loop()
        watch = self._watches.get(loop)
        if watch is None:
            # A new one, for it may be of another thread.
            watches = {other: old for other, old in self._watches.items() if not other.is_closed()}
            watch = watches[loop] = _Watch(loop)
            self._watches = watches
        return watch

    def failed(self, error: BackendUnavailableError, *, certain: bool = False, writes: bool = False) -> None:
        """Count a failure; the third in a row, or a certain one, opens the breaker, or that for writes."""
        self._failures[writes] += 1
        if self._last is not None or (not certain and self._failures[writes] < _FAILURES_TO_OPEN):
            return
        if not writes:
            self._last = error
            self._next_probe = self._clock() + _PROBE_EVERY
            _logger.warning("cache %s is not available, going on without it: %s", self._name, error)
            self._changed(error)
        elif self._refusal is None:
            self._refusal = error
            self._next_probe = self._clock() + _PROBE_EVERY
            _logger.warning("cache %s takes no writes, going on without them: %s", self._name, error)
            self._changed(error)

    def _failed_since(self, before: int, error: BackendUnavailableError, writes: bool) -> None:
        # Calls that were under way together fail together; that is one failure, however many they are.
        if self._failures[writes] <= before:
            self.failed(error, writes=writes)

    async def close(self) -> None:
        """End the probes of this event loop."""
        loop = asyncio.get_running_loop()
        probes = [probe for probe in self._probes if probe.get_loop() is loop]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def _in_background(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Find out whether the store is back, at most once a second and once at a time."""
        now = self._clock()
        loop = asyncio.get_running_loop()
        # A store that is silent for longer than a second must not gather probes.
        if now < self._next_probe or any(probe.get_loop() is loop for probe in tuple(self._probes)):
            return
        self._next_probe = now + _PROBE_EVERY
        probe = asyncio.ensure_future(attempt())
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _try_again(self) -> None:
        try:
            await self._probe()
            # The first one may have had to connect. A store that is too slow would be given up again at once.
            await self._call(self._probe, self._budget, writes=False, counts=False)
        except CacheError:
            return
        if self._last is not None:
            self._last = self._refusal = None  # what refused writes may have been this very outage
            self._failures = {False: 0, True: 0}
            _logger.warning("cache %s is available again", self._name)
            self._changed(None)

    async def _try_writing(self, verb: Callable[[], Awaitable[object]], budget: float) -> None:
        try:
            await self._call(verb, budget, writes=True, counts=True)
        except CacheError:
            return
        if self._refusal is not None:
            self._refusal = None
            _logger.warning("cache %s takes writes again", self._name)
            self._changed(None)
