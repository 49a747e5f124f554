"""Zipf's traffic over partitions and servers, played through caches that are no more than their order of eviction.

Where a key lies is said by the backends' own code: the layout of a namespace in Redis, the ring of Memcached servers.
``tests/reliability/test_scale.py`` plays the same traffic through a real Redis, and that hits at the same look-ups.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import OrderedDict
from itertools import accumulate
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from claude_force_backends._redis_layout import SLOTS, Layout
from claude_force_backends.memcached import MemcachedBackend
from claude_force_cache import BackendSettings, BackendURL

__all__ = [
    "Evicting",
    "Loss",
    "Skew",
    "Traffic",
    "behind_tiers",
    "hit_ratio",
    "lose_a_server",
    "masters",
    "partitions",
    "servers",
    "skew",
]

_MEDIAN_BYTES, _SPREAD = 2000, 1.0
_SHORTEST, _LONGEST = 200, 200_000


class Traffic:
    """Look-ups of keys, the *k*-th most popular of which is asked for in proportion to ``k ** -exponent``.

    The same arguments give the same traffic.

    :param names: what each key is stored under, hexadecimal digits as a cache's names are, most popular first.
    :param sizes: what each entry counts, its name and a value of 200 bytes to 200 KB, half of them below 2 KB.
    :param asked: the number of the key that each look-up is for.
    """

    def __init__(self, keys: int, lookups: int, exponent: float, seed: int) -> None:
        # No secret depends on it.
        rng = random.Random(f"{seed} {keys} {exponent}")
        self.exponent = exponent
        self.names = [hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(keys)]
        values = (rng.lognormvariate(math.log(_MEDIAN_BYTES), _SPREAD) for _ in range(keys))
        self.sizes = [64 + int(min(_LONGEST, max(_SHORTEST, value))) for value in values]
        weights = list(accumulate(rank**-exponent for rank in range(1, keys + 1)))
        self.asked = rng.choices(range(keys), cum_weights=weights, k=lookups)

    @property
    def bytes(self) -> int:
        """What all entries together count."""
        return sum(self.sizes)


class Evicting:
    """One partition: it evicts the least recently used until it is within its limit.

    :param slack: the share of the limit that an eviction may free beyond what is needed.
    :param recency: how many look-ups of the whole traffic lie between two uses of an entry that count.
    """

    def __init__(self, limit: float, slack: float = 0.0, recency: int = 0) -> None:
        self.limit = limit
        self.bytes = 0
        self._slack = slack * limit
        self._recency = recency
        self._entries: OrderedDict[int, int] = OrderedDict()
        self._noted: Dict[int, int] = {}

    def ask(self, key: int, size: int, now: int) -> bool:
        """Return whether an entry is there; store it if not. ``now`` is the number of the look-up."""
        if key in self._entries:
            if now - self._noted[key] >= self._recency:
                self._entries.move_to_end(key)
                self._noted[key] = now
            return True
        if size > self.limit:
            return False
        excess = self.bytes + size - self.limit
        if excess > 0:
            self._evict(excess)
        self._entries[key] = size
        self._noted[key] = now
        self.bytes += size
        return False

    def _evict(self, excess: float) -> None:
        freed = 0
        while self._entries:
            key, size = next(iter(self._entries.items()))
            if freed >= excess and freed + size > excess + self._slack:
                break
            del self._entries[key], self._noted[key]
            freed += size
        self.bytes -= freed


def partitions(names: Sequence[str], count: int) -> List[int]:
    """Return the partition of a namespace in Redis that each key belongs to."""
    layout = Layout("scale", count)
    return [layout.partition(name) for name in names]


def masters(count: int, nodes: int) -> List[int]:
    """Return the master that each partition lies on, where each of ``nodes`` has an equal run of slots."""
    return [slot * nodes // SLOTS for slot in Layout("scale", count).slots]


def servers(names: Sequence[str], count: int) -> List[int]:
    """Return the Memcached server that each key belongs to."""
    addresses = [f"cache-{number}.internal:11211" for number in range(count)]
    url, _ = BackendURL.parse("memcached://" + ",".join(addresses))
    backend = MemcachedBackend(BackendSettings(url, "scale", None, None, {}))
    numbers = {address: number for number, address in enumerate(addresses)}
    return [numbers[backend._ring.get_node(name)] for name in names]


def hit_ratio(traffic: Traffic, places: Sequence[int], stores: Sequence[Evicting]) -> float:
    """Return the share of the look-ups that hit, in the second half of the traffic, when the stores are full."""
    start = len(traffic.asked) // 2
    hits = 0
    for now, key in enumerate(traffic.asked):
        hits += stores[places[key]].ask(key, traffic.sizes[key], now) and now >= start
    return hits / (len(traffic.asked) - start)


class Skew(NamedTuple):
    """How much more than the mean the fullest or busiest place has, and how much less the emptiest."""

    most: float
    least: float

    def __str__(self) -> str:
        return f"{self.most - 1:+.0%} {self.least - 1:+.0%}"


def skew(places: Sequence[int], weights: Sequence[float], count: int) -> Skew:
    """Return how evenly ``weights``, one for each of ``places``, lie on ``count`` places."""
    sums = [0.0] * count
    for place, weight in zip(places, weights):
        sums[place] += weight
    mean = sum(sums) / count
    return Skew(max(sums) / mean, min(sums) / mean)


def behind_tiers(traffic: Traffic, processes: int, every: float, seed: int) -> List[int]:
    """Return the look-ups that reach the store, where each process remembers what it was answered.

    :param every: how many look-ups of the whole traffic there are in the life of what a process remembers.
    """
    rng = random.Random(seed)
    asked: Dict[Tuple[int, int], int] = {}
    through = []
    for now, key in enumerate(traffic.asked):
        who = rng.randrange(processes), key
        before = asked.get(who)
        if before is None or now - before >= every:
            asked[who] = now
            through.append(key)
    return through


class Loss(NamedTuple):
    """Hit ratios around the loss of one server, and how many look-ups it took until the old one was back.

    The last is None if it was not within the traffic.
    """

    before: float
    without: float
    refilling: List[float]
    until_refilled: Optional[int]


def lose_a_server(traffic: Traffic, places: Sequence[int], stores: List[Evicting], *, window: int) -> Loss:
    """Play the traffic with a server gone for its third quarter and back, empty, for the last.

    Its keys stay with it: meanwhile they are misses, and are not stored. ``window`` is how many look-ups a ratio is of.
    """
    half, back = len(traffic.asked) // 2, len(traffic.asked) * 3 // 4
    lost = 0
    hits: List[bool] = []
    for now, key in enumerate(traffic.asked):
        if now == back:
            stores[lost] = Evicting(stores[lost].limit)
        away = places[key] == lost and half <= now < back
        hits.append(not away and stores[places[key]].ask(key, traffic.sizes[key], now))
    before = sum(hits[half - half // 2 : half]) / (half // 2)
    refilling = [sum(hits[start : start + window]) / window for start in range(back, len(hits) - window + 1, window)]
    # Within half a point.
    recovered = next((number for number, ratio in enumerate(refilling) if ratio >= before - 0.005), None)
    return Loss(
        before,
        sum(hits[half:back]) / (back - half),
        refilling,
        None if recovered is None else recovered * window,
    )
