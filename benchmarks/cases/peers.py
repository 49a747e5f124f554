"""Ours beside the libraries that one would use instead: hits, hits by many at once, stores, and a hundred keys."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Awaitable, Callable, Dict, Iterator, List, NamedTuple

from claude_force_cache import JSONCodec

from ..bench import Bench, case
from ..measuring import Column, Contender, Section, Target, interleave
from ..payloads import value
from ..peers import PEERS, Peer, Store

_ENTRIES = 64
_MANY = 100
_SIZES = {"2 KB": 2_000, "20 KB": 20_000}

_EVERYTHING = "tag, expiry, limit in bytes, own copy"

_COLUMNS = (
    Column("median_us", "median us"),
    Column("p99_us", "p99 us"),
    Column("ratio", "to the contender", 2),
    Column("to_floor", "to the floor", 2),
    Column("guards", "checks and keeps"),
)


class _Limit(NamedTuple):
    """What ours may cost: a multiple of the first peer's median, or of its median for one alone."""

    operation: str
    text: str
    most: float
    of: str


_LIMITS = {
    "disk": (
        _Limit("hit", "a verified hit at most 1.15 times diskcache in a thread", 1.15, "hit"),
        _Limit("hit, 64 at once", "64 at once: at most 0.3 times per hit", 0.3, "hit"),
        _Limit("store", "a store at most 1.2 times diskcache's set in a thread", 1.2, "store"),
    ),
    "redis": (
        _Limit("hit", "a verified hit at most 1.0 times redis.asyncio GET", 1.0, "hit"),
        _Limit("hit, 64 at once", "64 at once: at most 0.3 times per hit", 0.3, "hit"),
        _Limit("store", "a store at most 1.4 times redis.asyncio SET", 1.4, "store"),
        _Limit("100 keys", "100 keys at most 1.5 times MGET", 1.5, "100 keys"),
    ),
    "memcached": (
        _Limit("hit", "a verified hit at most 1.15 times PooledClient.get in a thread", 1.15, "hit"),
        _Limit("hit, 64 at once", "64 at once: at most 0.3 times per hit", 0.3, "hit"),
    ),
}


@case("peers", "Ours beside others")
async def peers(bench: Bench) -> Section:
    section = Section(
        about=(
            f"The same values over {_ENTRIES} keys, through each library as its documentation has it. Ours with "
            "everything on: each value sealed, accounted for and decoded for its caller; without the in-process tier, "
            "but for the lines that name it. Raw clients return bytes and check nothing. `64 at once` and `100 keys` "
            "are per key. One core: client, server and threads share it; two: the server has its own, and threads may "
            "use both. The contender is the first of its group."
        ),
        columns=_COLUMNS,
    )
    for store in PEERS:
        reason = bench.missing(store)
        if reason is not None:
            section.missing.append(reason)
            continue
        for cores in _placements(store):
            for size in _SIZES:
                bench.say(f"  {store}, {size}, {cores or 'any'} core(s)")
                try:
                    await _measure(bench, section, store, size=size, cores=cores)
                except ImportError as error:
                    section.missing.append(f"{store}: not measured: {error}; `make bench` installs it")
    return section


def _placements(store: str) -> List[int]:
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        return [0]
    return [1] if store == "memory" else [1, 2]


@contextmanager
def _placed(cores: int, *, server: bool) -> Iterator[None]:
    """Put this thread, and the threads and programs that it starts, on as many cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    first, second, *_ = sorted(before) * 2
    os.sched_setaffinity(0, {first} if cores == 1 else {second} if server else {first, second})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def _measure(bench: Bench, section: Section, store: str, *, size: str, cores: int) -> None:
    length = _SIZES[size]
    values = [value(f"peer {number}", length) for number in range(_ENTRIES)]
    folder = bench.folder / f"peers-{store}-{length}-{cores}"
    folder.mkdir()
    with _placed(cores, server=True):
        url = bench.new_url(store)
        port = bench.servers.start(store) if store in {"redis", "memcached"} else 0
    with _placed(cores, server=False):
        async with AsyncExitStack() as stack:
            contenders = await PEERS[store](Store(folder, port, stack))
            ours = await _ours(bench, stack, url, store)
            everybody = [*contenders[:1], *ours, *contenders[1:]]
            for peer in everybody:
                if peer.set is not None:
                    for number, one in enumerate(values):
                        await peer.set(number, _form(peer, one))
            rows = await _rounds(bench, everybody, values)
    heading = f"{store}, {size}, {['any', 'one', 'two'][cores]} core{'s' * (cores != 1)}"
    for operation, figures in rows.items():
        if everybody[0].name not in figures:
            continue
        base = figures[everybody[0].name]["median_us"]
        floor = min((row["median_us"] for name, row in figures.items() if name.startswith("floor")), default=None)
        for peer in everybody:
            if peer.name in figures:
                row = figures[peer.name]
                section.rows.append(
                    {
                        "name": f"{heading}: {operation}: {peer.name}",
                        **row,
                        "ratio": row["median_us"] / base,
                        "to_floor": row["median_us"] / floor if floor else None,
                        "guards": peer.guards,
                    }
                )
    section.targets += _judge(store, heading, rows, everybody[0].name, ours)


def _judge(
    store: str, heading: str, rows: Dict[str, Dict[str, Dict[str, float]]], contender: str, ours: List[Peer]
) -> List[Target]:
    targets = []
    for limit in _LIMITS.get(store, ()):
        if limit.operation in rows:
            ratio = rows[limit.operation][ours[0].name]["median_us"] / rows[limit.of][contender]["median_us"]
            targets.append(Target(f"{heading}: {limit.text}", f"{ratio:.2f} times", ratio <= limit.most))
    if store == "memory":
        hits = rows["hit"]
        tier = hits["ours, in-process tier, text"]["median_us"]
        targets.append(Target(f"{heading}: a hit in the tier at most 2 us", f"{tier:.2f} us", tier <= 2.0))
        for other in ("cashews", "aiocache", "LiteLLM"):
            ratio = hits[other]["median_us"] / tier
            targets.append(Target(f"{heading}: 5 times faster than {other}", f"{ratio:.1f} times", ratio >= 5.0))
    return targets


def _form(peer: Peer, one: Any) -> Any:
    return one if peer.encodes else json.dumps(one).encode()


async def _ours(bench: Bench, stack: AsyncExitStack, url: str, store: str) -> List[Peer]:
    """Return our caches; the first one is what the limits are about."""
    verified = await stack.enter_async_context(bench.cache(url, tier_bytes=0, codec=JSONCodec()))

    async def many(numbers: Any) -> object:
        return await asyncio.gather(*(verified.get(_name(number)) for number in numbers))

    found = [
        Peer(
            "ours, verified",
            lambda n: verified.get(_name(n)),
            lambda n, v: verified.set(_name(n), v),
            _EVERYTHING,
            many=many,
        )
    ]
    if store == "memory":
        tier = await stack.enter_async_context(bench.cache(url, tier_bytes="64MiB", codec=JSONCodec()))
        text = await stack.enter_async_context(bench.cache("memory://", tier_bytes="64MiB", codec=JSONCodec()))
        found += [
            Peer(
                "ours, in-process tier", lambda n: tier.get(_name(n)), lambda n, v: tier.set(_name(n), v), _EVERYTHING
            ),
            Peer(
                "ours, in-process tier, text",
                lambda n: text.get(_name(n)),
                lambda n, v: text.set(_name(n), v["text"]),
                "expiry, limit in bytes; verified when it came in",
            ),
        ]
    return found


def _name(number: int) -> str:
    return f"peer:{number:060d}"


async def _rounds(bench: Bench, everybody: List[Peer], values: List[Any]) -> Dict[str, Dict[str, Dict[str, float]]]:
    rounds, operations = bench.pick(5, 25), bench.pick(64, 256)
    forms = {peer.name: [_form(peer, one) for one in values] for peer in everybody}

    def hit(peer: Peer) -> Callable[[int], Awaitable[object]]:
        return lambda index: peer.get(index % _ENTRIES)

    def store(peer: Peer) -> Callable[[int], Awaitable[object]]:
        put = peer.set
        assert put is not None
        mine = forms[peer.name]
        return lambda index: put(index % _ENTRIES, mine[index % _ENTRIES])

    def at_once(peer: Peer) -> Callable[[int], Awaitable[object]]:
        async def run(_: int) -> object:
            return await asyncio.gather(*(peer.get(number) for number in range(_ENTRIES)))

        return run

    def many(peer: Peer) -> Callable[[int], Awaitable[object]]:
        numbers = [number % _ENTRIES for number in range(_MANY)]
        get_many = peer.many
        assert get_many is not None
        return lambda _: get_many(numbers)

    def one_by_one(peer: Peer) -> bool:
        return not peer.name.startswith("floor")

    return {
        "hit": await _series(everybody, hit, rounds, operations),
        "hit, 64 at once": await _series(
            list(filter(one_by_one, everybody)), at_once, rounds, bench.pick(4, 10), per=_ENTRIES
        ),
        "store": await _series([peer for peer in everybody if peer.set], store, rounds, operations // 2),
        "100 keys": await _series(
            [peer for peer in everybody if peer.many], many, rounds, bench.pick(4, 10), per=_MANY
        ),
    }


async def _series(
    everybody: List[Peer],
    operation: Callable[[Peer], Callable[[int], Awaitable[object]]],
    rounds: int,
    operations: int,
    *,
    per: int = 1,
) -> Dict[str, Dict[str, float]]:
    contenders = [Contender(peer.name, operation(peer)) for peer in everybody]
    series = await interleave(contenders, rounds=rounds, operations=operations) if contenders else {}
    return {
        name: {"median_us": timings.median * 1e6 / per, "p99_us": timings.p99 * 1e6 / per}
        for name, timings in series.items()
    }
