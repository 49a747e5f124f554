"""The pace: a copy of the API's quotas, kept so that a call waits here instead of being refused there."""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Optional

__all__ = ["Pace", "Start"]

_KINDS = ("requests", "tokens", "input-tokens", "output-tokens")
_LEARNING = 0.25


class Start(NamedTuple):
    """A request that was let go.

    :param number: how many there have been, this one included.
    :param time: when, in seconds of the clock that the caller goes by.
    """

    number: int
    time: float


class _Bucket:
    """One quota: it holds up to ``limit``, and a minute fills it."""

    __slots__ = ("cost", "level", "limit", "sample", "sampled", "updated")

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.limit = 0.0
        self.level = 0.0
        self.updated = 0.0
        self.sample = 0.0
        self.sampled: Optional[Start] = None

    def refill(self, now: float) -> None:
        if now > self.updated:
            self.level = min(self.limit, self.level + (now - self.updated) * self.limit / 60)
            self.updated = now

    def delay(self) -> float:
        # A request that costs more than the bucket ever holds is let go once it is full: the API decides.
        missing = min(self.cost, self.limit) - self.level
        return 60 * missing / self.limit if missing > 0 else 0.0

    def learn_cost(self, start: Start, remaining: float) -> None:
        """Learn what a request costs, from what is gone since the last sample."""
        if self.sampled is None or start.number <= self.sampled.number:
            return
        refilled = self.sample + (start.time - self.sampled.time) * self.limit / 60
        spent = max(0.0, min(self.limit, refilled) - remaining) / (start.number - self.sampled.number)
        self.cost += (_LEARNING if self.cost else 1.0) * (spent - self.cost)


class Pace:
    """The quotas of one family of models, as the ``anthropic-ratelimit-*`` headers of its replies tell them.

    The API refills its quotas continuously, and so does this copy: what remained when the last reply was made,
    less what was let go since, plus a sixtieth of the limit for each second. The copy errs low: the time that a
    reply travelled is not counted as refilled. That costs no throughput, only a few requests of the quota which
    stay unused. Before the first reply, and where there are no such headers, there is no pace.

    What a request costs is 1 of the requests; of the tokens it is learnt from what remained before and after.

    Not thread-safe; the clock is whatever the caller passes, as long as it does not run backwards.
    """

    def __init__(self) -> None:
        self._buckets: Dict[str, _Bucket] = {}
        self._number = 0

    def delay(self, now: float) -> float:
        """Return the seconds until there is room for one more request."""
        longest = 0.0
        for bucket in self._buckets.values():
            bucket.refill(now)
            longest = max(longest, bucket.delay())
        return longest

    def start(self, now: float) -> Start:
        """Count a request that is let go."""
        self._number += 1
        for bucket in self._buckets.values():
            bucket.refill(now)
            bucket.level -= bucket.cost
        return Start(self._number, now)

    def learn(self, start: Start, headers: Mapping[str, str], now: float) -> None:
        """Take over what a reply says of the quotas.

        :param start: the request that is replied to. What came later is not in the reply, and is deducted.
        """
        for kind in _KINDS:
            limit = _number(headers.get(f"anthropic-ratelimit-{kind}-limit"))
            remaining = _number(headers.get(f"anthropic-ratelimit-{kind}-remaining"))
            if not limit or remaining is None:
                continue
            bucket = self._buckets.get(kind)
            if bucket is None:
                bucket = self._buckets[kind] = _Bucket(1.0 if kind == "requests" else 0.0)
            if bucket.sampled is not None and start.number < bucket.sampled.number:
                continue  # replies overtake each other; the one to the latest request knows best
            bucket.limit = limit
            if kind != "requests":
                bucket.learn_cost(start, remaining)
            bucket.sample, bucket.sampled = remaining, start
            bucket.level = remaining - (self._number - start.number) * bucket.cost
            bucket.updated = now


def _number(text: Optional[str]) -> Optional[float]:
    """Return a whole number that is not negative, or None for anything else."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) <= 15 else None
