"""Ours beside the libraries that one would use instead: hits, hits by many at once, stores, and a hundred keys."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Sequence

from ..bench import Bench, case
from ..measuring import Column, Contender, Section, interleave
from ..payloads import value
from ..peers import FLOOR, PEERS, Peer, Store
from ..placement import Placement, placements
from ..targets import Target

_ENTRIES = 64
_MANY = 100
_SIZES = {"2 KB": 2_000, "20 KB": 20_000}

_VERIFIED = "ours, verified"
_TIER = "ours, in-process tier"
_TIER_TEXT = "ours, in-process tier, text"

_HIT = "hit"
_AT_ONCE = "hit, 64 at once"
_STORE = "store"
_HUNDRED = "100 keys"

_GUARANTEES = "integrity; limit in bytes; exact account; own copy"

_COLUMNS = (
    Column("median_us", "median us", 2),
    Column("p99_us", "p99 us", 2),
    Column("ratio", "to the contender", 2),
    Column("to_floor", "to the floor", 2),
    Column("guarantees", "guarantees"),
)


class _Limit(NamedTuple):
    """What ours may cost: a multiple of the first peer's median for ``of``."""

    line: str
    operation: str
    most: float
    of: str


_LIMITS = {
    "disk": (
        _Limit("disk hit", _HIT, 1.15, _HIT),
        _Limit("disk hit", _AT_ONCE, 0.3, _HIT),
        _Limit("disk store", _STORE, 1.2, _STORE),
    ),
    "redis": (
        _Limit("redis hit", _HIT, 1.0, _HIT),
        _Limit("redis hit", _AT_ONCE, 0.3, _HIT),
        _Limit("redis store", _STORE, 1.4, _STORE),
        _Limit("redis many", _HUNDRED, 1.5, _HUNDRED),
    ),
    "memcached": (
        _Limit("memcached hit", _HIT, 1.15, _HIT),
        _Limit("memcached hit", _AT_ONCE, 0.3, _HIT),
    ),
}

Figures = Dict[str, Dict[str, float]]


@case("peers", "Ours beside others", seconds=900.0)
async def peers(bench: Bench) -> Section:
    section = Section(
        about=(
            f"The same values over {_ENTRIES} keys, through each library as its documentation has it. Ours with "
            "everything on: each value sealed, accounted for and decoded for its caller; without the in-process "
            "tier, but for the lines that name it. `64 at once` and `100 keys` are per key. The contender is the "
            "first of its group, the floor the quickest of those that are called so. Guarantees: integrity is who "
            "verifies what the store returns; limit in bytes, who keeps to one, hard if nothing else is said; exact "
            "account, who knows at every moment what is stored; shared, who serves several processes; own copy, "
            "whose callers cannot change each other's values."
        ),
        columns=_COLUMNS,
    )
    for store in PEERS:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        for placement in placements(alone=store == "memory"):
            for size in bench.pick(("2 KB",), tuple(_SIZES)):
                bench.say(f"  {store}, {size}, {placement.name}")
                with bench.attempt(section, f"{store}, {size}, {placement.name}"):
                    await _measure(bench, section, store, size, placement)
    bench.plot(section, "hits", "A hit of 2 KB on one core, and each of 64 at once", _bars(section))
    return section


async def _measure(bench: Bench, section: Section, store: str, size: str, placement: Placement) -> None:
    length, conditions = _SIZES[size], f"{size}, {placement.name}"
    values = [value(f"peer {number}", length) for number in range(_ENTRIES)]
    folder = bench.folder / f"peers-{store}-{length}-{placement.name}"
    folder.mkdir()
    with placement.servers():
        url = bench.new_url(store)
        port = bench.servers.start(store) if store in {"redis", "memcached"} else 0
    with placement.client():
        async with AsyncExitStack() as stack:
            ours = await _ours(bench, stack, url, store)
            others = await _others(section, Store(folder, port, stack), store, conditions, values)
            for peer in ours:
                await _fill(peer, values)
            rows = await _rounds(bench, [*others[:1], *ours, *others[1:]], values, placement)
    heading = f"{store}, {conditions}"
    # The first one is the contender only if it could be measured.
    contender = PEERS[store][0][0]
    for operation, figures in rows.items():
        _enter(section, f"{heading}: {operation}", figures, contender, [*ours, *others])
    section.targets += _judge(store, heading, rows, contender)


async def _others(section: Section, place: Store, store: str, conditions: str, values: Sequence[Any]) -> List[Peer]:
    """Return the peers that work here, with the values in them; the others are listed as missing, with the reason."""
    found = []
    for name, maker in PEERS[store]:
        try:
            peer = await maker(place)
            await _fill(peer, values)
            await peer.get(0)
        except Exception as error:  # noqa: BLE001 - theirs, of any kind; the others are measured
            section.missing.append(f"{store}, {conditions}: {name}: not measured: {type(error).__name__}: {error}")
        else:
            found.append(peer)
    return found


async def _fill(peer: Peer, values: Sequence[Any]) -> None:
    if peer.set is not None:
        for number, one in enumerate(values):
            await peer.set(number, _form(peer, one))


def _enter(section: Section, heading: str, figures: Figures, contender: str, everybody: Sequence[Peer]) -> None:
    base = figures[contender]["median_us"] if contender in figures else None
    floor = min((row["median_us"] for name, row in figures.items() if name.startswith(FLOOR)), default=None)
    guarantees = {peer.name: peer.guarantees for peer in everybody}
    for name, row in figures.items():
        section.rows.append(
            {
                "name": f"{heading}: {name}",
                **row,
                "ratio": row["median_us"] / base if base else None,
                "to_floor": row["median_us"] / floor if floor else None,
                "guarantees": guarantees[name],
            }
        )


def _judge(store: str, heading: str, rows: Dict[str, Figures], contender: str) -> List[Target]:
    targets = []
    for limit in _LIMITS.get(store, ()):
        of = rows[limit.of].get(contender)
        if of is not None:
            ratio = rows[limit.operation][_VERIFIED]["median_us"] / of["median_us"]
            targets.append(Target(limit.line, f"{heading}: {limit.operation}", ratio, limit.most, "times"))
    if store == "memory":
        hits = rows[_HIT]
        tier = hits[_TIER_TEXT]["median_us"]
        targets.append(Target("tier", heading, tier, 2.0, "us"))
        targets += [
            Target("tier", f"{heading}: {other}", hits[other]["median_us"] / tier, 5.0, "times faster", least=True)
            for other in ("cashews", "aiocache", "LiteLLM")
            if other in hits
        ]
    return targets


def _form(peer: Peer, one: Any) -> Any:
    return one if peer.encodes else json.dumps(one).encode()


async def _ours(bench: Bench, stack: AsyncExitStack, url: str, store: str) -> List[Peer]:
    """Return our caches; the first one is what the limits are about."""
    shared = "; shared" if store != "memory" else ""
    verified = await stack.enter_async_context(bench.cache(url, tier_bytes=0))

    async def many(numbers: Sequence[int]) -> object:
        return await verified.get_many([_name(number) for number in numbers])

    found = [
        Peer(
            _VERIFIED,
            lambda n: verified.get(_name(n)),
            lambda n, v: verified.set(_name(n), v),
            f"{_GUARANTEES}{shared}",
            many=many,
        )
    ]
    if store == "memory":
        tier = await stack.enter_async_context(bench.cache(url, tier_bytes="64MiB"))
        text = await stack.enter_async_context(bench.cache(url, tier_bytes="64MiB"))
        when = "integrity when it came in; limit in bytes; own copy"
        found += [
            Peer(_TIER, lambda n: tier.get(_name(n)), lambda n, v: tier.set(_name(n), v), when),
            # A text cannot be changed, so callers share it; an answer of the orchestrator's cannot either.
            Peer(_TIER_TEXT, lambda n: text.get(_name(n)), lambda n, v: text.set(_name(n), v["text"]), when),
        ]
    return found


def _name(number: int) -> str:
    return f"peer:{number:060d}"


async def _rounds(
    bench: Bench, everybody: List[Peer], values: Sequence[Any], placement: Placement
) -> Dict[str, Figures]:
    rounds, operations = bench.pick(2, 20), bench.pick(24, 200)
    few = bench.pick(1, 8)
    forms = {peer.name: [_form(peer, one) for one in values] for peer in everybody}

    def hit(peer: Peer) -> Callable[[int], Awaitable[object]]:
        return lambda index: peer.get(index % _ENTRIES)

    def store(peer: Peer) -> Callable[[int], Awaitable[object]]:
        put, mine = peer.set, forms[peer.name]
        assert put is not None
        return lambda index: put(index % _ENTRIES, mine[index % _ENTRIES])

    def at_once(peer: Peer) -> Callable[[int], Awaitable[object]]:
        numbers = range(_ENTRIES)
        together = peer.at_once
        if together is not None:
            return lambda _: together(numbers)

        async def run(_: int) -> object:
            return await asyncio.gather(*(peer.get(number) for number in numbers))

        return run

    def many(peer: Peer) -> Callable[[int], Awaitable[object]]:
        numbers = [number % _ENTRIES for number in range(_MANY)]
        get_many = peer.many
        assert get_many is not None
        return lambda _: get_many(numbers)

    async def series(
        peers: Sequence[Peer],
        operation: Callable[[Peer], Callable[[int], Awaitable[object]]],
        count: int,
        per: int = 1,
    ) -> Figures:
        contenders = [Contender(peer.name, operation(peer)) for peer in peers]
        found = await interleave(contenders, rounds=rounds, operations=count, placement=placement)
        return {
            name: {"median_us": timings.median * 1e6 / per, "p99_us": timings.p99 * 1e6 / per}
            for name, timings in found.items()
        }

    return {
        _HIT: await series(everybody, hit, operations),
        _AT_ONCE: await series(everybody, at_once, few, _ENTRIES),
        _STORE: await series([peer for peer in everybody if peer.set], store, operations // 2),
        _HUNDRED: await series([peer for peer in everybody if peer.many], many, few, _MANY),
    }


def _bars(section: Section) -> Dict[str, Dict[str, Optional[float]]]:
    """Return the medians of the plot: by store and operation, for each peer."""
    groups: Dict[str, Dict[str, Optional[float]]] = {}
    for row in section.rows:
        heading, operation, name = row["name"].split(": ", 2)
        store, size, placement = heading.split(", ", 2)
        if size == "2 KB" and placement != "two cores" and operation in {_HIT, _AT_ONCE}:
            groups.setdefault(f"{store}: {operation}", {})[name] = row["median_us"]
    return groups
