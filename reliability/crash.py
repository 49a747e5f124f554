"""Writers, and servers, that are killed with SIGKILL at random moments, and what is there afterwards.

``python -m reliability.crash --backend disk --rounds 1000``: in each round several processes set, overwrite, add,
touch, delete and evict until they are killed; then a fresh process opens the store and looks at every entry. They tell
of each operation before and after it, so it is known what was done, and what may have been under way:

- an entry is whole: what the last finished operation left, or what the one under way would have left, or absent if that
  one deletes, or if something had to be evicted;
- the account equals what a scan finds, and is within the limit;
- a store on disk consists of its database, SQLite's two files and the folder's own marks, and nothing else;
- the next process opens it at once and can write.

With ``--backend redis`` the server has an append-only file, and is killed and started again as well. With ``--fsync
everysec`` it may have postponed writing what it had acknowledged, by up to two seconds, while a flush was under way;
then a key may also hold what an earlier operation left. With ``memcached`` only the writers are killed, since such a
server keeps nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import pickle
import random
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Set, Tuple, Union

from claude_force_cache import (
    Backend,
    BackendSettings,
    BackendUnavailableError,
    BackendURL,
    SyncBackend,
    load_backend,
)

from .servers import Server

__all__ = ["Report", "run"]

AnyBackend = Union[Backend, SyncBackend]
State = Optional[int]
"""What a key holds: the number of the operation that wrote it, or None."""

_NOTE = struct.Struct(">BHq")
"""Phase, key, and what the key holds after the operation: the number of the one that wrote it, or -1 for nothing."""

_BEGINS, _DONE, _VOID = 0, 1, 2
"""An operation is about to begin; has changed the key as it said; has changed nothing."""

_KEYS = 24
_SIZES = (0, 1, 200, 2_000, 20_000, 150_000)
_LIMIT = 1_500_000
_START_SECONDS = 30.0


class Report(NamedTuple):
    """What came of it.

    :param rounds: how often everything was killed.
    :param kills: how many processes that was.
    :param operations: how many operations had been finished by then.
    :param looked_at: how many entries were found whole.
    :param under_way: how many operations were under way, of which so many had happened.
    :param problems: what should not be.
    """

    rounds: int
    kills: int
    operations: int
    looked_at: int
    under_way: int
    happened: int
    seconds: float
    problems: List[str]


class _Found(NamedTuple):
    """What a fresh process saw."""

    states: Dict[str, int]
    problems: List[str]


def _content(key: str, number: int, length: int) -> bytes:
    head = f"{key}|{number}|{length}|".encode()
    body = (hashlib.sha256(head).digest() * (length // 32 + 1))[:length]
    return head + body + hashlib.sha256(head + body).digest()


def _number_of(key: str, content: bytes) -> Optional[int]:
    """Return which operation wrote this whole value of this key, or None if none did."""
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        return None
    name, number, _ = content.split(b"|", 3)[:3]
    return int(number) if name == key.encode() else None


async def _maybe(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


def _backend(url: str, namespace: str, limit: Optional[int]) -> AnyBackend:
    parts, _ = BackendURL.parse(url)
    plugin = load_backend(parts.scheme)
    defaults = {option.name: option.default for option in plugin.options}
    return plugin.create(BackendSettings(url=parts, namespace=namespace, max_bytes=limit, options=defaults))


class _Writer:
    """Does one operation after the other on keys of its own, and tells of each."""

    def __init__(self, backend: AnyBackend, name: str, pipe: int, seed: int) -> None:
        self._backend = backend
        self._name = name
        self._pipe = pipe
        self._random = random.Random(seed)
        self._number = seed << 32

    async def write_until_killed(self) -> None:
        await _maybe(self._backend.open())
        while True:
            await self.step()

    async def step(self) -> None:
        choose = self._random
        index = choose.randrange(_KEYS)
        key = f"{self._name}-{index}"
        self._number += 1
        number = self._number
        content = _content(key, number, choose.choice(_SIZES))
        ttl = choose.choice((None, 3600.0))
        verb = choose.choice(("set", "set", "set", "add", "touch", "delete", "delete if", "set_many"))
        backend: Any = self._backend
        if verb in {"set", "set_many", "add"}:
            self._tell(_BEGINS, index, number)
            if verb == "set":
                await _maybe(backend.set(key, content, ttl=ttl))
            elif verb == "set_many":
                await _maybe(backend.set_many({key: (content, ttl)}))
            elif not await _maybe(backend.add(key, content, ttl=ttl)):
                self._tell(_VOID, index, 0)
                return
            self._tell(_DONE, index, number)
        elif verb == "touch":
            await _maybe(backend.touch(key, ttl=ttl))
        else:
            entry = await _maybe(backend.get(key)) if verb == "delete if" else None
            self._tell(_BEGINS, index, -1)
            version = None if entry is None else entry.version
            if verb == "delete if" and entry is None:
                self._tell(_VOID, index, 0)
                return
            await _maybe(backend.delete(key, version=version))
            self._tell(_DONE, index, -1)

    def _tell(self, phase: int, index: int, holds: int) -> None:
        os.write(self._pipe, _NOTE.pack(phase, index, holds))


async def _look(backend: AnyBackend, limit: Optional[int]) -> _Found:
    """Open the store, look at every entry, and write one."""
    problems: List[str] = []
    states: Dict[str, int] = {}
    await _maybe(backend.open())
    try:
        scanned: Any = backend.scan()
        infos = [info async for info in scanned] if hasattr(scanned, "__aiter__") else list(scanned)
        for info in infos:
            entry = await _maybe(backend.get(info.key))
            if entry is None:
                problems.append(f"{info.key} is listed and not there")
                continue
            number = _number_of(info.key, entry.value)
            if number is None:
                problems.append(f"{info.key} is torn: {len(entry.value)} bytes")
            elif info.size != len(info.key) + len(entry.value):
                problems.append(f"{info.key} is counted with {info.size} bytes")
            else:
                states[info.key] = number
        usage = await _maybe(backend.usage())
        counted = (len(infos), sum(info.size for info in infos))
        if tuple(usage) != counted:
            problems.append(f"the account says {tuple(usage)}, and {counted} are there")
        if limit is not None and usage.bytes > limit:
            problems.append(f"{usage.bytes} bytes are above the limit of {limit}")
        await _maybe(backend.set("probe", _content("probe", 0, 10), ttl=None))
        await _maybe(backend.delete("probe"))
    finally:
        await _maybe(backend.close())
    return _Found(states, problems)


def _in_child(work: Callable[[int], None]) -> Tuple[int, int]:
    """Run ``work`` in a fork, with the writing end of a pipe; return its pid and the reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        work(writing)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's program
        traceback.print_exc()
        os._exit(1)


def _result_of(work: Callable[[], Awaitable[Any]]) -> Any:
    """Return what ``work`` returns in a process of its own; this one must stay without threads, to fork."""

    def tell(pipe: int) -> None:
        data = pickle.dumps(asyncio.run(_awaited(work)))
        while data:
            data = data[os.write(pipe, data) :]

    pid, pipe = _in_child(tell)
    chunks = []
    while True:
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(pipe)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError("a process that looks at the store has failed, see above")
    return pickle.loads(b"".join(chunks))


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


class _Keys:
    """What is known of the keys of one writer: what they hold, and what may be under way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holds: Dict[str, State] = {}
        self.held: Dict[str, Set[State]] = {}
        self.pending: Optional[Tuple[str, State]] = None
        self.done = 0

    def hear(self, data: bytes) -> None:
        for phase, index, holds in _NOTE.iter_unpack(data[: len(data) // _NOTE.size * _NOTE.size]):
            key, state = f"{self.name}-{index}", None if holds < 0 else holds
            if phase == _BEGINS:
                self.pending = (key, state)
                continue
            self.pending = None
            self.done += 1
            if phase == _DONE:
                self.holds[key] = state
                self.held.setdefault(key, {None}).add(state)

    def judge(self, found: Dict[str, int], *, evicts: bool, forgets: bool) -> Tuple[List[str], bool]:
        """Return what cannot be, and whether what was under way has happened; take what is there for true.

        :param evicts: whether an entry may have had to make room.
        :param forgets: whether the last operations may be lost.
        """
        problems, happened = [], False
        pending, self.pending = self.pending, None
        for key in {*self.holds, *(key for key in found if key.startswith(f"{self.name}-"))}:
            state = found.get(key)
            allowed = {self.holds.get(key)}
            if pending is not None and pending[0] == key:
                allowed.add(pending[1])
                happened = state == pending[1] != self.holds.get(key)
            if evicts:
                allowed.add(None)
            if forgets:
                allowed |= self.held.get(key, set())
            if state not in allowed:
                problems.append(f"{key} holds {state}, expected one of {allowed}")
            self.holds[key] = state
        return problems, happened


def run(
    kind: str,
    *,
    rounds: int,
    writers: int = 3,
    seed: int = 0,
    fsync: str = "always",
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Kill ``writers`` processes in each round, and look. This process must not have started threads."""
    choose = random.Random(seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="crash-") as name:
        folder = Path(name)
        server: Optional[Server] = None
        url = f"disk://{folder}/cache"
        if kind == "redis":
            server = Server(kind, folder, "--appendonly", "yes", "--appendfsync", fsync)
        elif kind == "memcached":
            server = Server(kind, folder, "-o", "hashpower=13")
        if server is not None:
            server.start()
            url = server.url
        try:
            report = _rounds(
                kind,
                url,
                folder=folder,
                server=server,
                choose=choose,
                rounds=rounds,
                writers=writers,
                fsync=fsync,
                say=say,
            )
        finally:
            if server is not None:
                server.kill()
    return report._replace(seconds=round(time.monotonic() - began, 1))


def _rounds(
    kind: str,
    url: str,
    *,
    folder: Path,
    server: Optional[Server],
    choose: random.Random,
    rounds: int,
    writers: int,
    fsync: str,
    say: Callable[[str], None],
) -> Report:
    problems: List[str] = []
    kills = operations = looked_at = under_way = happened = 0
    # One namespace has room for everything and one evicts, by turns.
    known = {limit: [_Keys(f"w{number}") for number in range(writers)] for limit in (None, _LIMIT)}
    for number in range(rounds):
        limit = (None, _LIMIT)[number % 2]
        namespace = "room" if limit is None else "full"
        children = []
        for keys in known[limit]:
            job = _writer_job(url, namespace, limit, keys.name, choose.getrandbits(20))
            children.append((*_in_child(job), keys))
        _listen(children, choose.uniform(0.01, 0.12))
        restarts = server is not None and kind == "redis" and number % 4 == 3
        if server is not None and restarts:
            server.kill()  # under the writers' hands
            kills += 1
        for pid, _, _ in children:
            os.kill(pid, signal.SIGKILL)
        for pid, pipe, keys in children:
            os.waitpid(pid, 0)
            os.set_blocking(pipe, True)
            while True:
                data = os.read(pipe, 1 << 16)
                if not data:
                    break
                keys.hear(data)
            os.close(pipe)
            kills += 1
        if server is not None and restarts:
            server.start()
        found: _Found = _result_of(lambda: _look(_backend(url, namespace, limit), limit))  # noqa: B023 - called here
        problems += [f"round {number}: {problem}" for problem in found.problems]
        looked_at += len(found.states)
        for keys in known[limit]:
            operations += keys.done
            under_way += keys.pending is not None
            keys.done = 0
            wrong, came = keys.judge(found.states, evicts=limit is not None, forgets=restarts and fsync == "everysec")
            happened += came
            problems += [f"round {number}: {problem}" for problem in wrong]
        if kind == "disk":
            strange = [
                str(path.relative_to(folder))
                for path in (folder / "cache").rglob("*")
                if path.is_file() and path.name not in {"cache.db", "cache.db-wal", "cache.db-shm"}
            ]
            problems += [f"round {number}: {path} is left behind" for path in strange if not _is_ours(path)]
        if number % 100 == 99:
            say(f"{number + 1} rounds, {operations} operations, {len(problems)} problems")
    return Report(rounds, kills, operations, looked_at, under_way, happened, 0.0, problems)


def _is_ours(path: str) -> bool:
    """Return whether a file is one of those that say whose folder it is."""
    return path in {"cache/.gitignore", "cache/CACHEDIR.TAG", "cache/.claude-force-cache"}


def _listen(children: List[Any], seconds: float) -> None:
    """Take in what the writers tell, so that none waits for us, for some time after all of them have begun."""
    open_pipes = {pipe: keys for _, pipe, keys in children}
    for pipe in open_pipes:
        os.set_blocking(pipe, False)
    silent = set(open_pipes)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        ready, _, _ = select.select(list(open_pipes), [], [], max(0.0, min(0.05, deadline - time.monotonic())))
        for pipe in ready:
            data = os.read(pipe, _NOTE.size * 4096)
            if not data:
                raise RuntimeError("a writer has ended by itself, see above")
            open_pipes[pipe].hear(data)
            silent.discard(pipe)
        if not silent and seconds:
            deadline, seconds = time.monotonic() + seconds, 0.0
    if silent:
        raise RuntimeError("a writer has done nothing: there is nothing to judge")


def _writer_job(url: str, namespace: str, limit: Optional[int], name: str, seed: int) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        writer = _Writer(_backend(url, namespace, limit), name, pipe, seed)
        try:
            asyncio.run(writer.write_until_killed())
        except BackendUnavailableError:
            if not url.startswith("redis:"):
                raise
            time.sleep(_START_SECONDS)  # the server was killed first; so will this process be

    return work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.crash", description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=["disk", "redis", "memcached"], default="disk")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fsync", choices=["always", "everysec"], default="always", help="of Redis' append-only file")
    chosen = parser.parse_args()
    report = run(
        chosen.backend,
        rounds=chosen.rounds,
        writers=chosen.writers,
        seed=chosen.seed,
        fsync=chosen.fsync,
        say=lambda line: print(line, flush=True),
    )
    for name, value in report._asdict().items():
        if name != "problems":
            print(f"{name:12} {value}")
    print("\n".join(report.problems[:50]) or "no problem")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
