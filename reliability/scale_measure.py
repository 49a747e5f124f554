"""What an entry takes and a verb costs, asked of real servers: memory, commands, and the time of one Redis core."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sqlite3
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, cast

from claude_force_backends.redis import RedisBackend
from claude_force_cache import BackendSettings, BackendURL, BytesCodec, Cache, open_cache

from .servers import Server, commands, memcached_stats, redis_client

__all__ = ["TOGETHER", "Core", "Footprint", "commands_of", "footprint", "running"]

_NAMESPACE = "scale"
_NO_LIMIT = 1 << 40
_MOST_BYTES = 16_000_000
TOGETHER = 64
"""As many entries as a busy process asks for at once: reads that meet travel together."""


@contextmanager
def running(kind: str, folder: Path, *arguments: str) -> Iterator[Server]:
    """Lend a server of our own while it runs."""
    server = Server(kind, folder, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _cache(url: str, **options: Any) -> Cache[bytes]:
    # What is stored must be as long as it says.
    return open_cache(
        url,
        codec=BytesCodec(),
        namespace=_NAMESPACE,
        secrets="of an experiment only",
        tier_bytes=0,
        compress=False,
        timeout=30,
        **options,
    )


class Footprint(NamedTuple):
    """What a store has of each entry, in bytes.

    :param counted: what the account says, the key and the sealed value.
    :param taken: what the store needs for it.
    :param account: the part of that which is the account's: sizes, order of use, lives.
    :param listing: seconds that ``usage`` takes, for each entry.
    """

    entries: int
    counted: float
    taken: float
    account: Optional[float]
    listing: float


async def _fill(url: str, entries: int, length: int, **options: Any) -> Tuple[float, float]:
    """Store so many entries; return what one counts, and the seconds of ``usage`` for each."""
    value = os.urandom(length)
    async with _cache(url, **options) as cache:
        for start in range(0, entries, 500):
            together = range(start, min(start + 500, entries))
            stored = await asyncio.gather(*(cache.set(number, value) for number in together))
            if not all(stored):
                raise RuntimeError(f"{url} does not take all entries of the experiment")
        await cache.usage()  # the first one on a Redis looks at every entry
        began = time.perf_counter()
        usage = await cache.usage()
        return usage.bytes / usage.entries, (time.perf_counter() - began) / usage.entries


def footprint(kind: str, folder: Path, entries: int, length: int) -> Footprint:
    """Store ``entries`` values of ``length`` bytes in an empty store, and ask it what it needs for them."""
    limit = 100 * entries * (length + 1000)
    if kind == "disk":
        counted, listing = asyncio.run(_fill(f"disk://{folder}/footprint", entries, length, max_bytes=limit))
        (database,) = (folder / "footprint").rglob("cache.db")
        with closing(sqlite3.connect(database)) as connection:
            pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return Footprint(entries, counted, pages * size / entries, None, listing)
    if kind == "memcached":
        with running(kind, folder, "-m", str(2 + limit // 100_000_000)) as server:
            counted, listing = asyncio.run(_fill(server.url, entries, length, max_bytes=limit))
            stats = memcached_stats(server.url)
            return Footprint(entries, counted, stats["bytes"] / stats["curr_items"], None, listing)
    with running(kind, folder) as server, closing(redis_client(server.url)) as client:
        before = client.info("memory")["used_memory"]
        counted, listing = asyncio.run(_fill(server.url, entries, length, max_bytes=limit))
        taken = client.info("memory")["used_memory"] - before
        indexes = [name for name in client.scan_iter(count=1000) if not name.rpartition(b":")[0].endswith(b":d")]
        account = sum(client.memory_usage(name, samples=0) or 0 for name in indexes)
        return Footprint(entries, counted, taken / entries, account / entries, listing)


async def _commands(url: str, rounds: int, length: int, **options: Any) -> Dict[str, Dict[str, float]]:
    async with _cache(url, **options) as cache:
        values = [os.urandom(length) for _ in range(rounds)]
        await cache.set("warm", values[0])
        await cache.get("warm")
        found: Dict[str, Dict[str, float]] = {}
        before = commands(url)
        for what in ("a store", "a hit", "a miss", "a deletion"):
            for number, value in enumerate(values):
                if what == "a store":
                    await cache.set(number, value)
                elif what == "a deletion":
                    await cache.delete(number)
                else:
                    await cache.get(number if what == "a hit" else str(number))
            after = commands(url)
            counted = Counter(after)
            counted.subtract(before)
            found[what] = {name: count / rounds for name, count in sorted(counted.items()) if count >= rounds / 2}
            before = after
        return found


def commands_of(kind: str, folder: Path, rounds: int, length: int) -> Dict[str, Dict[str, float]]:
    """Return for each verb, one at a time, how many commands of which kind the server carries out."""
    with running(kind, folder) as server:
        return asyncio.run(_commands(server.url, rounds, length, max_bytes=1_000_000_000))


class Core(NamedTuple):
    """What one core of a server sustains.

    :param done: entries in a second of the server's own time.
    :param share: of its core, how much the server was busy.
    """

    done: float
    share: float


async def _recorded(
    url: str, limit: int, values: Dict[str, bytes], *, verb: str, together: int, others: int
) -> List[Tuple[bytes, int]]:
    """Return what the backend sends for its verbs, as bytes, and how many replies there are to each piece."""
    parsed, _ = BackendURL.parse(url)
    backend = RedisBackend(BackendSettings(parsed, _NAMESPACE, limit))
    await backend.open()
    try:
        router = backend._router()
        outcomes = router.outcomes
        pieces: List[Tuple[bytes, int]] = []
        pack = (await router.subscribable()).connection().pack_commands

        async def recording(requests: Sequence[Any], **options: Any) -> Any:
            pieces.append((b"".join(pack([request.command for request in requests])), len(requests)))
            return await outcomes(requests, **options)

        async def store(batch: Sequence[str]) -> None:
            await backend.set_many({name: (values[name], 3600.0) for name in batch})

        if verb == "hit":
            for batch in _batches([f"other-{number}" for number in range(others)], TOGETHER):
                await backend.set_many(dict.fromkeys(batch, (b"", None)))
            for batch in _batches(list(values), TOGETHER):
                await store(batch)
        setattr(router, "outcomes", recording)  # noqa: B010 - a method is not assigned to
        for batch in _batches(list(values), together):
            await (backend.get_many(batch) if verb == "hit" else store(batch))
        return pieces
    finally:
        await backend.close()


def _batches(names: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    return (names[start : start + length] for start in range(0, len(names), length))


def _end_of_reply(data: bytearray, start: int) -> int:
    """Return where the reply ends that starts there; -1 if it is not complete."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return -1
    kind, end = data[start], line + 2
    if kind == ord("-"):
        raise RuntimeError(f"the server refuses: {data[start:line].decode()}")
    if kind in b"+:":
        return end
    number = int(data[start + 1 : line])
    if kind == ord("$"):
        end += max(number + 2, 0)
        return end if end <= len(data) else -1
    for _ in range(number):
        end = _end_of_reply(data, end)
        if end < 0:
            return -1
    return end


def _receive(connection: socket.socket, replies: int) -> None:
    data, end = bytearray(), 0
    while replies:
        data += connection.recv(1 << 18)
        while replies and len(data) > end:
            after = _end_of_reply(data, end)
            if after < 0:
                break
            end, replies = after, replies - 1


def _hammer(port: int, pieces: List[Tuple[bytes, int]], seconds: float, number: int, core: Optional[int]) -> int:
    """Send the pieces over some connections, one after the other on each; return how many were answered."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    done = number * len(pieces) // 7
    first, end = done, time.monotonic() + seconds
    while time.monotonic() < end:
        sent = []
        for connection in connections:
            data, replies = pieces[done % len(pieces)]
            connection.sendall(data)
            sent.append((connection, replies))
            done += 1
        for connection, replies in sent:
            _receive(connection, replies)
    for connection in connections:
        connection.close()
    return done - first


class Clients:
    """Processes that send what a backend sends, for as long as they are lent.

    :param processes: how many.
    """

    def __init__(self, processes: int = 4) -> None:
        self._processes = processes
        cores = sorted(os.sched_getaffinity(0))
        self._server_core, self._others = cores[0], cores[1:]
        self._pool = multiprocessing.get_context("spawn").Pool(processes)

    def close(self) -> None:
        """End the processes."""
        self._pool.terminate()
        self._pool.join()

    def keep_busy(
        self, folder: Path, verb: str, *, together: int = 1, length: int, seconds: float, others: int
    ) -> Core:
        """Pin a Redis to one core, and send it what the backend sends, as fast as it answers.

        :param verb: ``hit``, or ``store``: of a new entry, at the limit, so that each evicts an older one.
        :param together: how many entries travel in one piece.
        :param others: how many more entries there are when it hits; and at most as many, and 2,048, are asked for.
        """
        count = min(2048, others, _MOST_BYTES // length) // TOGETHER * TOGETHER
        values = {f"{number:064x}": os.urandom(length) for number in range(count)}
        limit = _NO_LIMIT if verb == "hit" else count * (64 + length) // 2
        with running("redis", folder) as server, closing(redis_client(server.url)) as client:
            if self._others:
                os.sched_setaffinity(server.pid, {self._server_core})
            pieces = asyncio.run(_recorded(server.url, limit, values, verb=verb, together=together, others=others))
            jobs = [
                (
                    server.port,
                    pieces,
                    seconds,
                    number,
                    self._others[number % len(self._others)] if self._others else None,
                )
                for number in range(self._processes)
            ]
            before, began = _time_of(client), time.monotonic()
            done = sum(self._pool.starmap(_hammer, jobs, chunksize=1))
            busy, elapsed = _time_of(client) - before, time.monotonic() - began
        return Core(done * together / busy, min(1.0, busy / min(elapsed, seconds)))


def _time_of(client: Any) -> float:
    info = cast("Dict[str, float]", client.info("cpu"))
    return info["used_cpu_user"] + info["used_cpu_sys"]
