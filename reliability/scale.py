"""How the cache grows: traffic by Zipf's law over partitions and servers, simulated; what an entry takes, measured.

    python -m reliability.scale [--part simulated|measured] [--seed N] [--keys N] [--lookups N] [--entries N]

Prints tables in Markdown. The simulated ones are the same for the same arguments. The measured ones start servers of
their own, and end only these.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import scale_measure as measure
from . import scale_traffic as traffic
from .scale_traffic import Evicting, Traffic
from .servers import sum_of_sent

__all__ = ["main"]

_EXPONENTS = (0.8, 1.0, 1.2)
_PARTITIONS = (1, 8, 64, 512)
_SERVERS = (3, 8)
_MASTERS = (3, 6)
_SLACK = 0.05
_RATE, _HIGH_RATE = 10, 1000
"""Look-ups a second, where time matters: for a tier, and for uses that Memcached is told of once a minute."""

_MINUTE = 60
_PROCESSES = 50

_BILLION = 1_000_000_000
_GIB = 1 << 30
_SERVER_BYTES = 48 * _GIB
"""What a server of 64 GiB has for the store."""

_PARTITION_ENTRIES = 1_000_000


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    sys.stdout.flush()


class _Places(NamedTuple):
    """Of each number of partitions or servers, which one each key belongs to."""

    partitions: Dict[int, List[int]]
    servers: Dict[int, List[int]]


def _hit_ratios(places: _Places, options: argparse.Namespace) -> None:
    rows: List[List[object]] = []
    for exponent in _EXPONENTS:
        asked = Traffic(options.keys, options.lookups, exponent, options.seed)
        for share in (0.01, 0.1):
            limit = asked.bytes * share
            row: List[object] = [exponent, f"{share:.0%}, some {options.keys * share:,.0f}"]
            for count, of in places.partitions.items():
                ratio = traffic.hit_ratio(asked, of, [Evicting(limit / count) for _ in range(count)])
                row.append(f"{ratio:.1%}")
            for count, of in places.servers.items():
                stores = [Evicting(limit / count, _SLACK, _RATE * _MINUTE) for _ in range(count)]
                row.append(f"{traffic.hit_ratio(asked, of, stores):.1%}")
            rows.append(row)
    columns = ["exponent", "limit, of all entries", "one LRU"]
    columns += [f"{count} partitions" for count in _PARTITIONS[1:]]
    columns += [f"{count} Memcached servers" for count in _SERVERS]
    _table(f"Hit ratio: {options.keys:,} keys, {options.lookups:,} look-ups, the second half counts", columns, rows)


def _skews(asked: Traffic, places: _Places, options: argparse.Namespace) -> None:
    all_of = Counter(asked.asked)
    weights: List[Sequence[float]] = [[1] * options.keys, asked.sizes, [all_of[key] for key in range(options.keys)]]
    said = [f"the most popular key is {all_of.most_common(1)[0][1] / len(asked.asked):.1%} of the look-ups"]
    for rate in (_RATE, _HIGH_RATE):
        through = traffic.behind_tiers(asked, _PROCESSES, rate * _MINUTE, options.seed)
        past_tiers = Counter(through)
        weights.append([past_tiers[key] for key in range(options.keys)])
        part, hottest = len(through) / len(asked.asked), past_tiers.most_common(1)[0][1] / len(through)
        said.append(
            f"at {rate:,}/s the tiers of {_PROCESSES} processes let {part:.0%} through, {hottest:.2%} of them for it"
        )
    shown: Dict[str, Tuple[int, List[int]]] = {}
    for count in _PARTITIONS[1:3]:
        shown[f"{count} partitions"] = count, places.partitions[count]
    for nodes in _MASTERS:
        nodes_of = traffic.masters(64, nodes)
        shown[f"{nodes} masters, 64 partitions"] = nodes, [nodes_of[partition] for partition in places.partitions[64]]
    for count, on_servers in places.servers.items():
        shown[f"{count} Memcached servers"] = count, on_servers
    rows = [[name, *(traffic.skew(of, weight, count) for weight in weights)] for name, (count, of) in shown.items()]
    columns = ["", "keys", "bytes", "look-ups", *(f"behind tiers, {rate:,}/s" for rate in (_RATE, _HIGH_RATE))]
    title = f"The fullest or busiest place and the emptiest, against the mean, exponent {asked.exponent:g}"
    _table(f"{title}: {'; '.join(said)}", columns, rows)


def _lost(asked: Traffic, places: _Places) -> None:
    rows = []
    window = max(1, len(asked.asked) // 100)
    for share in (0.01, 0.1):
        for count in _SERVERS:
            limit = asked.bytes * share / count
            stores = [Evicting(limit) for _ in range(count)]
            loss = traffic.lose_a_server(asked, places.servers[count], stores, window=window)
            ratios = (f"{ratio:.1%}" for ratio in (loss.before, loss.without, loss.refilling[0]))
            refilled = "later" if loss.until_refilled is None else f"{loss.until_refilled + window:,}"
            held = limit * len(asked.sizes) / asked.bytes
            rows.append([f"{share:.0%}", count, f"{held:,.0f}", *ratios, refilled])
    columns = ["limit, of all entries", "servers", "entries on each", "hit ratio before", "while one is away"]
    columns += [f"it is back, empty: first {window:,} look-ups", "within half a point after, at most"]
    _table(f"One server away for {len(asked.asked) // 4:,} look-ups, exponent {asked.exponent:g}", columns, rows)


def simulated(options: argparse.Namespace) -> None:
    """Print what the simulation says."""
    asked = Traffic(options.keys, options.lookups, 1.0, options.seed)
    # The names do not depend on how often they are asked for.
    places = _Places(
        {count: traffic.partitions(asked.names, count) for count in _PARTITIONS},
        {count: traffic.servers(asked.names, count) for count in _SERVERS},
    )
    _hit_ratios(places, options)
    _skews(asked, places, options)
    _lost(asked, places)


def _footprints(options: argparse.Namespace, folder: Path) -> Dict[str, measure.Footprint]:
    rows, found = [], {}
    for kind in ("redis", "memcached", "disk"):
        place = folder / kind
        place.mkdir()
        of = found[kind] = measure.footprint(kind, place, options.entries, options.length)
        account = "" if of.account is None else f"{of.account:.0f}"
        over = of.taken - of.counted
        rows.append(
            [kind, f"{of.counted:.0f}", f"{of.taken:.0f}", f"{over:.0f}", account, f"{1e6 * of.listing:.2f} us"]
        )
    _table(
        f"Bytes for each of {options.entries:,} entries of {options.length} bytes, with a limit and a life",
        ["store", "counted", "taken", "more than counted", "of that, the account", "`usage`, for each entry"],
        rows,
    )
    return found


def _commands(folder: Path, options: argparse.Namespace) -> None:
    rows = []
    for kind in ("redis", "memcached"):
        for verb, counts in measure.commands_of(kind, folder, 100, options.length).items():
            listed = ", ".join(f"{name} {count:.0f}" for name, count in counts.items())
            rows.append([kind, verb, f"{sum_of_sent(counts):.0f}", f"{sum(counts.values()):.0f}", listed])
    columns = ["store", "verb", "sent", "carried out, also in scripts", "which"]
    _table("Commands for each verb of a cache, one at a time", columns, rows)


def _cores(folder: Path, options: argparse.Namespace) -> Dict[str, float]:
    rows, found = [], {}
    with closing(measure.Clients()) as clients:
        for length in (options.length, 10 * options.length):
            for verb in ("hit", "store"):
                for together in (1, measure.TOGETHER):
                    core = clients.keep_busy(
                        folder, verb, together=together, length=length, seconds=options.seconds, others=options.entries
                    )
                    found[f"{verb} {together} {length}"] = core.done
                    rows.append([verb, f"{length:,}", together, f"{core.done:,.0f}", f"{core.share:.0%}"])
    columns = ["verb", "bytes", "sent together", "entries for each second of the core", "busy"]
    title = f"One core of a Redis: hits among {options.entries:,} entries, stores that evict"
    _table(title, columns, rows)
    return found


def _billion(footprints: Dict[str, measure.Footprint], cores: Dict[str, float], length: int) -> None:
    of_redis, of_memcached, on_disk = (footprints[kind] for kind in ("redis", "memcached", "disk"))
    masters = -(-_BILLION * of_redis.taken // _SERVER_BYTES)
    nodes = -(-_BILLION * of_memcached.taken // _SERVER_BYTES)
    listed = _BILLION / nodes * of_memcached.listing
    hits, stores = cores[f"hit 1 {length}"], cores[f"store 1 {length}"]
    rate = masters / (0.9 / hits + 0.1 / stores)
    rows = [
        ["`max_bytes`", f"{_BILLION * of_redis.counted / 1e12:.2f} TB"],
        ["memory of Redis", f"{_BILLION * of_redis.taken / 1e12:.2f} TB"],
        [f"masters with {_SERVER_BYTES // _GIB} GiB for it, and as many replicas", f"{masters:.0f}"],
        [f"partitions of {_PARTITION_ENTRIES:,} entries", f"{_BILLION // _PARTITION_ENTRIES:,}"],
        ["look-ups a second (1 of 10 stores) that these masters' cores sustain", f"{rate:,.0f}"],
        ["cores for 100,000 look-ups a second", f"{100_000 / rate * masters:.1f}"],
        ["memory of Memcached", f"{_BILLION * of_memcached.taken / 1e12:.2f} TB"],
        ["its servers, without replicas", f"{nodes:.0f}"],
        ["listing one of them, which a limit needs within 2 s", f"{listed:.0f} s"],
        ["disk", f"{_BILLION * on_disk.taken / 1e12:.2f} TB on each machine that has it all"],
    ]
    _table(f"What {_BILLION:,} entries of {length} bytes need", ["", ""], rows)


def measured(options: argparse.Namespace) -> None:
    """Print what real servers say."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        footprints = _footprints(options, folder)
        _commands(folder, options)
        cores = _cores(folder, options)
    _billion(footprints, cores, options.length)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the tables. Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["simulated", "measured"], help="default: both")
    parser.add_argument("--seed", type=int, default=1, help="of the traffic")
    parser.add_argument("--keys", type=int, default=100_000, help="how many keys there are")
    parser.add_argument("--lookups", type=int, default=1_000_000, help="how many look-ups are simulated")
    parser.add_argument("--entries", type=int, default=40_000, help="how many entries the measured stores hold")
    parser.add_argument("--length", type=int, default=2048, help="bytes of a measured value")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a core is kept busy with each verb")
    options = parser.parse_args(arguments)
    if options.part != "measured":
        simulated(options)
    if options.part != "simulated":
        measured(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
