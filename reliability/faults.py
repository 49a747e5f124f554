"""Faults of stores, each of which an experiment can begin and end: real servers, a real disk, a proxy between.

Some faults of a disk hold for the whole process, so an experiment runs each one in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import (
    Any,
    AsyncContextManager,
    AsyncIterator,
    Awaitable,
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Tuple,
)

import redis
from typing_extensions import Literal

from .proxy import FaultProxy
from .servers import Server

__all__ = ["FAULTS", "Fault", "Site"]

_SECONDS = 20.0
"""How long servers may take for what they do by themselves."""

_INDEX_BYTES = 32 * 1024
"""How large a file may still become: as SQLite's index of the log, which whoever reads may have to make anew."""

_NOBODY = 65534
_PASSWORD = "right"
_AT_ONCE = ("--repl-diskless-sync-delay", "0")
_Loss = Literal["all", "writes", "some", "nothing"]


class Site(NamedTuple):
    """A store that can be broken.

    :param url: the store as the cache under test is given it.
    :param direct: the same store, around whatever is put in between.
    :param begin: break it.
    :param end: mend it, and return when it works.
    """

    url: str
    direct: str
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


class Fault(NamedTuple):
    """One way in which a store fails.

    :param name: the store and what is wrong with it.
    :param loses: what cannot be done meanwhile; some, if that depends; nothing, if the store goes on with what is left.
    :param first: whether it is broken before the cache is opened.
    :param site: makes the store, in an empty folder.
    """

    name: str
    loses: _Loss
    first: bool
    site: Callable[[Path], AsyncContextManager[Site]]

    @property
    def backend(self) -> str:
        """The name of the store's kind."""
        return self.name.partition(" ")[0]


@contextmanager
def _running(kind: str, folder: Path, *arguments: str, start: bool = True) -> Iterator[Server]:
    server = Server(kind, folder, *arguments)
    try:
        if start:
            server.start()
        yield server
    finally:
        server.kill()


def _absent(kind: str) -> Callable[[Path], AsyncContextManager[Site]]:
    """Nobody listens there until the end."""

    @asynccontextmanager
    async def site(folder: Path) -> AsyncIterator[Site]:
        async def begin() -> None:
            pass

        async def end() -> None:
            server.start()

        with _running(kind, folder, start=False) as server:
            yield Site(server.url, server.url, begin, end)

    return site


def _killed(kind: str) -> Callable[[Path], AsyncContextManager[Site]]:
    """The server dies, so that its port refuses, and comes back empty."""

    @asynccontextmanager
    async def site(folder: Path) -> AsyncIterator[Site]:
        async def begin() -> None:
            server.kill()

        async def end() -> None:
            server.start()

        with _running(kind, folder) as server:
            yield Site(server.url, server.url, begin, end)

    return site


def _frozen(kind: str) -> Callable[[Path], AsyncContextManager[Site]]:
    """The server is stopped: the system accepts connections for it, and nothing comes back."""

    @asynccontextmanager
    async def site(folder: Path) -> AsyncIterator[Site]:
        async def begin() -> None:
            server.signal(signal.SIGSTOP)

        async def end() -> None:
            server.signal(signal.SIGCONT)

        with _running(kind, folder) as server:
            yield Site(server.url, server.url, begin, end)

    return site


def _network(kind: str, fault: str, amount: float = 0.0) -> Callable[[Path], AsyncContextManager[Site]]:
    """A proxy between cache and server does something; see :data:`reliability.proxy.FAULTS`."""

    @asynccontextmanager
    async def site(folder: Path) -> AsyncIterator[Site]:
        with _running(kind, folder) as server:
            async with FaultProxy("127.0.0.1", server.port) as proxy:

                async def begin() -> None:
                    await proxy.set(fault, amount)

                async def end() -> None:
                    await proxy.set("pass")

                yield Site(f"{kind}://{proxy.host}:{proxy.port}", server.url, begin, end)

    return site


@asynccontextmanager
async def _redis_full(folder: Path) -> AsyncIterator[Site]:
    with _running("redis", folder, "--maxmemory-policy", "noeviction") as server, _client(server) as client:

        async def begin() -> None:
            client.config_set("maxmemory", 1)

        async def end() -> None:
            client.config_set("maxmemory", 0)

        yield Site(server.url, server.url, begin, end)


@asynccontextmanager
async def _redis_demoted(folder: Path) -> AsyncIterator[Site]:
    """The master becomes the replica of the one that was its replica, as after a failover that nobody was told of."""
    with ExitStack() as stack:
        server, other = (stack.enter_context(_running("redis", folder, *_AT_ONCE)) for _ in range(2))
        clients = [stack.enter_context(_client(each)) for each in (server, other)]

        async def follow(follower: int, leader: Server) -> None:
            clients[follower].execute_command("REPLICAOF", "127.0.0.1", leader.port)
            await _until(lambda: clients[follower].info("replication")["master_link_status"] == "up")

        await follow(1, server)

        async def begin() -> None:
            clients[1].execute_command("REPLICAOF", "NO", "ONE")
            await follow(0, other)

        async def end() -> None:
            clients[0].execute_command("REPLICAOF", "NO", "ONE")

        yield Site(server.url, server.url, begin, end)


@asynccontextmanager
async def _redis_failover(folder: Path) -> AsyncIterator[Site]:
    """The master dies, and a Sentinel makes its replica the master."""
    with ExitStack() as stack:
        master, replica = (stack.enter_context(_running("redis", folder, *_AT_ONCE)) for _ in range(2))
        clients = [stack.enter_context(_client(each)) for each in (master, replica)]
        clients[1].execute_command("REPLICAOF", "127.0.0.1", master.port)
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor answers 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds answers 500\n"
            "sentinel failover-timeout answers 2000\n"
        )
        sentinel = Server("redis", folder, "--sentinel", configuration=configuration)
        stack.callback(sentinel.kill)
        sentinel.start()
        asked = stack.enter_context(_client(sentinel))
        await _until(lambda: clients[1].info("replication")["master_link_status"] == "up")
        await _until(lambda: asked.sentinel_masters()["answers"]["num-slaves"] == 1)
        url = f"redis://127.0.0.1:{sentinel.port}/0?topology=sentinel&sentinel_service=answers"

        async def begin() -> None:
            # What the replica does not have yet is lost with the master.
            await _until(lambda: clients[0].wait(1, 1000) == 1)
            master.kill()

        async def end() -> None:
            await _until(lambda: clients[1].info("replication")["role"] == "master")
            await _until(lambda: asked.sentinel_get_master_addr_by_name("answers")[1] == replica.port)

        yield Site(url, url, begin, end)


@asynccontextmanager
async def _redis_password(folder: Path) -> AsyncIterator[Site]:
    """The user is deleted, which cuts its connections, and comes back with another password, later with its own."""
    with _running("redis", folder) as server, _client(server) as client:

        async def give(password: str) -> None:
            client.execute_command("ACL", "DELUSER", "worker")
            client.execute_command("ACL", "SETUSER", "worker", "on", f">{password}", "~*", "&*", "+@all")

        async def begin() -> None:
            await give("another")

        async def end() -> None:
            await give(_PASSWORD)

        await end()
        url = f"redis://worker:{_PASSWORD}@127.0.0.1:{server.port}"
        yield Site(url, url, begin, end)


@asynccontextmanager
async def _memcached_full(folder: Path) -> AsyncIterator[Site]:
    """A server that may evict nothing has no memory left for items of any size."""
    # Few classes of sizes, for each one is promised a page.
    with _running("memcached", folder, "-M", "-m", "2", "-f", "4") as server:
        filled: List[bytes] = []

        async def begin() -> None:
            with socket.create_connection(("127.0.0.1", server.port), 5) as wire, wire.makefile("rb") as replies:
                for size in (400_000, 100_000, 30_000, 8000, 2000, 500, 100, 1):
                    for number in range(100_000):
                        key = b"filler:%d:%d" % (size, number)
                        wire.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key, size, bytes(size)))
                        if not replies.readline().startswith(b"STORED"):
                            break
                        filled.append(key)

        async def end() -> None:
            with socket.create_connection(("127.0.0.1", server.port), 5) as wire, wire.makefile("rb") as replies:
                for key in filled:
                    wire.sendall(b"delete %s\r\n" % key)
                    replies.readline()

        yield Site(server.url, server.url, begin, end)


@contextmanager
def _anywhere(folder: Path) -> Iterator[Path]:
    yield folder


def _disk(
    fault: Callable[[Path], Iterator[None]], place: Callable[[Path], ContextManager[Path]] = _anywhere
) -> Callable[[Path], AsyncContextManager[Site]]:
    """A folder with which something is wrong while the generator waits, in a place that is made for it."""

    @asynccontextmanager
    async def site(folder: Path) -> AsyncIterator[Site]:
        with place(folder) as parent, ExitStack() as broken:

            async def begin() -> None:
                broken.enter_context(contextmanager(fault)(parent / "cache"))

            async def end() -> None:
                broken.close()

            url = f"disk://{parent}/cache"
            yield Site(url, url, begin, end)

    return site


def _files_cannot_grow(folder: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_INDEX_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _removed(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder)
    yield


def _a_file(folder: Path) -> Iterator[None]:
    """A file is where the folder was, so that it cannot be made anew."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_bytes(b"")
    yield
    folder.unlink()
    aside.rename(folder)


def _locked(folder: Path) -> Iterator[None]:
    """Another process is in the middle of a transaction that writes."""
    (database,) = folder.rglob("cache.db")
    program = (
        "import sqlite3, sys; sql = sqlite3.connect(sys.argv[1], isolation_level=None); sql.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read(); sql.execute('ROLLBACK'); sql.close()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"locked\n"
        yield
        holder.stdin.close()
        holder.wait()


def _read_only(folder: Path) -> Iterator[None]:
    everything = [folder, *folder.rglob("*")]
    modes = {path: path.stat().st_mode for path in everything}
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    for path in everything:
        if path.exists():
            path.chmod(modes[path])


@contextmanager
def _as_nobody(folder: Path) -> Iterator[Path]:
    """Nothing is forbidden to root, who becomes somebody else, with a folder of its own."""
    if os.geteuid() != 0:
        yield folder
        return
    folder.chmod(0o711)
    own = Path(tempfile.mkdtemp(dir=str(folder)))
    os.chown(own, _NOBODY, _NOBODY)
    os.seteuid(_NOBODY)
    try:
        yield own
    finally:
        os.seteuid(0)


@contextmanager
def _small(folder: Path) -> Iterator[Path]:
    """A file system of 32 MB: SQLite's log alone takes four.

    :raises PermissionError: if it cannot be made.
    """
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError("only root can make a file system of a given size")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _filled(folder: Path) -> Iterator[None]:
    filler = folder.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    yield
    filler.unlink()


@contextmanager
def _client(server: Server) -> Iterator[Any]:
    client: Any = redis.Redis(port=server.port, socket_timeout=5)
    try:
        yield client
    finally:
        client.close()


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not _holds(condition):
        assert time.monotonic() < deadline, "the servers did not do in time what they should"
        await asyncio.sleep(0.01)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except (redis.RedisError, KeyError):
        return False


_LATE = 0.4
"""Seconds by which a slow network holds back each piece: more than a look-up may cost."""

_SLUGGISH = 0.1
"""The same of one that is just fast enough for a single round trip."""

_ANY_SERVER: List[Tuple[str, _Loss, bool, Callable[[str], Callable[[Path], AsyncContextManager[Site]]]]] = [
    ("absent", "all", True, _absent),
    ("killed", "all", False, _killed),
    ("frozen", "all", False, _frozen),
    ("silent network", "all", False, lambda kind: _network(kind, "silence")),
    ("slow network", "all", False, lambda kind: _network(kind, "latency", _LATE)),
    ("sluggish network", "some", False, lambda kind: _network(kind, "latency", _SLUGGISH)),
    ("connections reset", "all", False, lambda kind: _network(kind, "reset")),
    ("cut in mid-reply", "all", False, lambda kind: _network(kind, "cut", 3)),
]

FAULTS: Dict[str, Fault] = {
    fault.name: fault
    for fault in [
        *(Fault(f"redis {name}", loses, first, make("redis")) for name, loses, first, make in _ANY_SERVER),
        Fault("redis out of memory", "writes", False, _redis_full),
        Fault("redis read-only replica", "all", False, _redis_demoted),
        Fault("redis failing over", "all", False, _redis_failover),
        Fault("redis wrong password", "all", False, _redis_password),
        *(Fault(f"memcached {name}", loses, first, make("memcached")) for name, loses, first, make in _ANY_SERVER),
        Fault("memcached out of memory", "writes", False, _memcached_full),
        Fault("disk full", "writes", False, _disk(_filled, _small)),
        Fault("disk file size limit", "writes", False, _disk(_files_cannot_grow)),
        Fault("disk locked by a process", "writes", False, _disk(_locked)),
        Fault("disk folder read-only", "all", True, _disk(_read_only, _as_nobody)),
        Fault("disk folder removed", "nothing", False, _disk(_removed)),
        Fault("disk folder cannot be made", "all", False, _disk(_a_file)),
    ]
}
"""Every fault, by its name."""
