"""Families of models: each has a limit of its own that adapts, pauses and a pace, all of them below one hard limit."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Mapping, Optional

from ._limiter import ConcurrencyLimiter
from ._pace import Pace, Start

__all__ = ["Families", "Family", "FamilyLimit", "model_family"]

COOL_DOWN = 15.0
"""Seconds after a rate limit, or a fault of the server, in which a limit does not grow; nor is it cut again."""

_FIRST = 20
_LEAST_BY_QUOTA = 10
_CUT = 0.8
_LONGEST_SLEEP = 1.0
_JITTER_BASE = 0.5
_JITTER_MOST = 8.0

Emit = Callable[..., None]


def model_family(model: str) -> str:
    """Return the family of a model: the words of its id, without those that hold a digit and without ``latest``.

    ``claude-haiku-4-5-20251001`` and ``claude-haiku-5-5`` are both of the family ``claude-haiku``. The API's rate
    limits are an organisation's, and the models of a family share them. An id without such words is its own family.
    """
    words = [word for word in model.lower().split("-") if word != "latest" and not any(map(str.isdigit, word))]
    return "-".join(words) or model


@dataclass(frozen=True)
class FamilyLimit:
    """How it stands with one family of models.

    :param limit: how many calls may be under way at once, at present.
    :param in_flight: how many requests are.
    :param waiting: how many calls wait: for a free slot, the end of a pause, room in the quota, or another attempt.
    :param paused_until: when the API allows the next request, in seconds since 1970, or None if it may be sent now.
    """

    limit: int
    in_flight: int
    waiting: int
    paused_until: Optional[float]


class Family:
    """What is known of the limits of one family of models.

    - The limit of concurrency starts at 20. It doubles with every round of answers until the first rate limit, and
      grows by one per round afterwards, but only while calls wait for it.
    - A rate limit (429) begins an episode: the limit is cut to 0.8 once, and rests for 15 seconds, or for as long as
      the API asks to wait. It is not cut below 10 where the quota is what is used up, since the pace takes care of
      that; where the quota has room there are too many calls at once, and the limit may go down to 1.
    - While the API asks to wait, no request of the family starts.
    - Faults of the server and time-outs only stop the growth.

    :param most: what the limit never exceeds.
    :param emit: called with the name and arguments of each event, without any lock held.
    :param clock: seconds; it never runs backwards.
    :param jitter: returns a number from 0 to below 1.
    """

    def __init__(
        self,
        name: str,
        most: int,
        emit: Emit,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.slots = ConcurrencyLimiter(min(_FIRST, most))
        self._most = most
        self._emit = emit
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._turn = ConcurrencyLimiter(1)
        self._pace = Pace()
        self._limit = float(self.slots.limit)
        self._doubles = True
        self._steady_until = 0.0
        self._cut_after = 0.0
        self._paused_until = 0.0
        self._paused_at = 0.0
        self._rounds = 0
        self._in_flight = 0

    @property
    def pause(self) -> float:
        """The seconds that the API still asks to wait, 0.0 if it does not."""
        return max(0.0, self._paused_until - self._clock())

    async def admit(self, *, patience: float) -> Optional[Start]:
        """Return once a request may start, first come, first served; it counts as started then.

        :param patience: None is returned at once when a pause lasts longer than this, in seconds.
        """
        await self._turn.acquire()
        try:
            while True:
                with self._lock:
                    now = self._clock()
                    pause = self._paused_until - now
                    delay = max(pause, self._pace.delay(now))
                    if delay <= 0:
                        return self._pace.start(now)
                if pause > patience:
                    return None
                # Not all of it at once: a reply may bring better news meanwhile.
                await asyncio.sleep(min(delay, _LONGEST_SLEEP))
        finally:
            self._turn.release()

    def enter(self) -> None:
        """Count a request as under way."""
        with self._lock:
            self._in_flight += 1

    def leave(self) -> None:
        """Count a request as ended."""
        with self._lock:
            self._in_flight -= 1

    def answered(self, start: Start, headers: Mapping[str, str]) -> None:
        """Learn from a reply with an answer."""
        with self._lock:
            now = self._clock()
            self._pace.learn(start, headers, now)
            self._rounds = 0
            limit = self._limit
            if now >= self._steady_until and self.slots.crowded:
                limit = min(self._most, limit + (1.0 if self._doubles else 1.0 / limit))
            changed = self._resize(limit)
        if changed:
            self._emit("limit", family=self.name, limit=changed, reason="growth")

    def refused(self, start: Start, headers: Mapping[str, str], asked: Optional[float]) -> None:
        """Learn from a reply that the rate limit is reached.

        :param asked: the seconds that the reply asks to wait, or None.
        """
        with self._lock:
            now = self._clock()
            self._pace.learn(start, headers, now)
            self._doubles = False
            self._steady_until = max(self._steady_until, now + max(COOL_DOWN, asked or 0.0))
            changed = 0
            if now >= self._cut_after:
                self._cut_after = self._steady_until
                least = min(_LEAST_BY_QUOTA, self._most) if self._pace.delay(now) > 0 else 1
                changed = self._resize(max(self._limit * _CUT, min(least, self._limit)))
            pause = 0.0 if asked is None else self._extend_pause(start, now, asked)
        if changed:
            self._emit("limit", family=self.name, limit=changed, reason="rate limit")
        if pause:
            self._emit("pause", family=self.name, seconds=pause)

    def faulted(self) -> None:
        """Learn that the server failed, or did not answer in time."""
        with self._lock:
            self._steady_until = max(self._steady_until, self._clock() + COOL_DOWN)

    def snapshot(self, now: float) -> FamilyLimit:
        """Return how it stands.

        :param now: seconds since 1970.
        """
        with self._lock:
            pause = self._paused_until - self._clock()
            in_flight = self._in_flight
        waiting = self.slots.in_use - in_flight + self.slots.waiting
        return FamilyLimit(self.slots.limit, in_flight, max(0, waiting), now + pause if pause > 0 else None)

    def _extend_pause(self, start: Start, now: float, asked: float) -> float:
        """Return the seconds of the pause if this reply makes it longer, or else 0.0."""
        if start.time >= self._paused_at:
            # It started after the last pause was over, and is refused again: others use the same quota. The longer
            # that goes on without an answer, the wider the programs that share it have to spread.
            self._rounds += 1
            self._paused_at = now
        spread = min(_JITTER_MOST, _JITTER_BASE * 2.0 ** min(self._rounds - 1, 16))
        until = now + asked + self._jitter() * spread
        if until <= self._paused_until:
            return 0.0
        self._paused_until = until
        return until - now

    def _resize(self, limit: float) -> int:
        """Set the limit, and return it as a whole number if that is a new one, or else 0."""
        self._limit = limit
        whole = int(limit)
        if whole == self.slots.limit:
            return 0
        self.slots.limit = whole
        return whole


class Families:
    """The families of one orchestrator, and the slots that they share.

    A call holds its family's slot from before the first attempt until after the last, pauses included: whoever was told
    to slow down shall not make room for another call of that family. A shared slot it holds only while an attempt is
    under way, so that a family that has to wait does not hold up the others.

    Requests start in turns of the event loop of their own. The SDK needs a millisecond or more to begin one, and as
    long for its reply: those that may start together, as after a round of answers, would hold up everything else for
    the sum of it, round after round.

    :param most: how many calls may be under way at once, over all families, event loops and threads.
    :param emit: called with the name and arguments of each event.
    """

    def __init__(self, most: int, emit: Emit, **options: Any) -> None:
        self._most = most
        self._emit = emit
        self._options = options
        self._shared = ConcurrencyLimiter(most)
        self._door = ConcurrencyLimiter(1)
        self._lock = threading.Lock()
        self._families: Dict[str, Family] = {}

    def of(self, model: str) -> Family:
        """Return the family of a model."""
        name = model_family(model)
        family = self._families.get(name)
        if family is None:
            with self._lock:
                family = self._families.setdefault(name, Family(name, self._most, self._emit, **self._options))
        return family

    async def enter(self, family: Family) -> None:
        """Return once a call of the family may begin. :meth:`leave` ends it."""
        await family.slots.acquire()

    def leave(self, family: Family) -> None:
        """End a call."""
        family.slots.release()

    async def start(self, family: Family, *, patience: float) -> Optional[Start]:
        """Return once a request of a call may start. :meth:`end` ends it.

        :param patience: None is returned, and nothing needs to be ended, when a pause lasts longer than this.
        """
        while True:
            start = await family.admit(patience=patience)
            if start is None:
                return None
            await self._shared.acquire()
            try:
                await self._take_turn()
            except BaseException:
                self._shared.release()
                raise
            if not family.pause:
                family.enter()
                return start
            # A pause began while this request waited for the others. It counts as started in the family's copy of
            # the quota until the next reply, which errs on the safe side.
            self._shared.release()

    async def _take_turn(self) -> None:
        await self._door.acquire()
        try:
            await asyncio.sleep(0)
        finally:
            self._door.release()

    def end(self, family: Family) -> None:
        """End a request."""
        family.leave()
        self._shared.release()

    def snapshot(self, now: float) -> Dict[str, FamilyLimit]:
        """Return how it stands with each family that was called, by name.

        :param now: seconds since 1970.
        """
        return {name: family.snapshot(now) for name, family in list(self._families.items())}
