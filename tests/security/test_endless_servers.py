"""A server whose listings never end: what counts and lists gives up, and a program starts without it."""

import asyncio
import socketserver
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from pymemcache.exceptions import MemcacheUnexpectedCloseError

from claude_force_backends._memcached_server import Server as Memcached
from claude_force_backends._memcached_server import _Wire
from claude_force_backends._redis_scripts import SCRIPTS
from claude_force_cache import BackendUnavailableError, open_cache

NAMES = {script.sha.encode(): name for name, script in SCRIPTS.items()}
NUMBERS = count()


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def row(number: int, size: bytes) -> bytes:
    return bulk(b"%064x" % number) + bulk(size) + bulk(b"")


GOOD: Dict[str, Callable[[], bytes]] = {
    "trim": lambda: b":0\r\n",
    "usage": lambda: b"*5\r\n:0\r\n:1\r\n" + bulk(b"0") + b":1\r\n:70\r\n",
    "scan": lambda: b"*1\r\n" + bulk(b"0"),
    "clear": lambda: b"*2\r\n:1\r\n:0\r\n",
    "use": lambda: bulk(b"1"),
}
ENDLESS: Dict[str, Dict[str, Callable[[], bytes]]] = {
    "always more to evict": {"trim": lambda: b":1\r\n"},
    "always more that expired": {"usage": lambda: b"*5\r\n:1\r\n:1\r\n" + bulk(b"0") + b":1\r\n:70\r\n"},
    "never checked": {"usage": lambda: b"*5\r\n:0\r\n:0\r\n" + bulk(b"0") + b":1\r\n:70\r\n"},
    "a check without end": {
        "usage": lambda: b"*5\r\n:0\r\n:0\r\n" + bulk(b"0") + b":1\r\n:70\r\n",
        "scan": lambda: b"*1\r\n" + bulk(b"7"),
    },
    "empty pages": {"scan": lambda: b"*1\r\n" + bulk(b"7")},
    "the same page": {"scan": lambda: b"*4\r\n" + bulk(b"7") + row(1, b"70")},
    "new entries": {"scan": lambda: b"*4\r\n" + bulk(b"7") + row(next(NUMBERS), b"1000")},
    "new entries of no size": {"scan": lambda: b"*4\r\n" + bulk(b"7") + row(next(NUMBERS), b"0")},
    "negative sizes": {"scan": lambda: b"*4\r\n" + bulk(b"7") + row(next(NUMBERS), b"-1000")},
    "always more to clear": {"clear": lambda: b"*2\r\n:1000\r\n:1\r\n"},
}


class Handler(socketserver.StreamRequestHandler):
    """Speaks as much of Redis' protocol as the backend needs, and runs no script."""

    server: Any

    def handle(self) -> None:
        while True:
            try:
                command = self.command()
            except (ValueError, OSError):
                return
            self.wfile.write(self.answer(command))

    def command(self) -> List[bytes]:
        parts = []
        for _ in range(int(self.rfile.readline()[1:])):
            length = int(self.rfile.readline()[1:])
            parts.append(self.rfile.read(length + 2)[:-2])
        return parts

    def answer(self, command: List[bytes]) -> bytes:
        verb = command[0].upper()
        if verb == b"MGET":
            partitions = command[1].endswith(b":partitions")
            return b"*%d\r\n" % (len(command) - 1) + (bulk(b"1") if partitions else b"$-1\r\n" * (len(command) - 1))
        if verb == b"RPUSH":
            return b":1\r\n"
        if verb == b"EVALSHA":
            return self.server.replies.get(NAMES[command[1]], lambda: b":0\r\n")()
        return b"+PONG\r\n" if verb == b"PING" else b"+OK\r\n"


class MemcachedHandler(socketserver.StreamRequestHandler):
    """Says of some things what it says without end, and of the others what Memcached does."""

    server: Any

    def handle(self) -> None:
        try:
            while True:
                line = self.rfile.readline()
                if not line:
                    return
                self.answer(line.split())
        except (OSError, IndexError):
            return

    def answer(self, words: List[bytes]) -> None:
        verb = b" ".join(words[:2]) if words[0] in {b"stats", b"lru_crawler"} else words[0]
        if verb in self.server.endless:
            # Many at once, as a server does that wants to be heard.
            while True:
                self.wfile.write(b"".join(self.server.endless[verb](words) for _ in range(100)))
        self.wfile.write(
            {
                b"version": b"VERSION 1.6.18\r\n",
                b"stats settings": b"STAT item_size_max 1048576\r\nEND\r\n",
                b"lru_crawler metadump": b"key=%s exp=-1 la=1 cas=1 fetch=no cls=1 size=90\r\nEND\r\n" % LISTED,
                b"mg": b"",
                b"mn": b"MN\r\n",
                b"get": b"END\r\n",
                b"gets": b"END\r\n",
                b"incr": b"NOT_FOUND\r\n",
            }.get(verb, b"ERROR\r\n")
        )


LISTED = b"cfc%3Adefault%3A" + b"0" * 64
ENDLESS_MEMCACHED: Dict[str, Dict[bytes, Callable[[List[bytes]], bytes]]] = {
    "settings": {b"stats settings": lambda _: b"STAT a b\r\n"},
    "a listing of one item": {b"lru_crawler metadump": lambda _: b"key=%s exp=-1 la=1 cas=1\r\n" % LISTED},
    "a listing of others' items": {b"lru_crawler metadump": lambda _: b"key=a exp=-1 la=1 cas=1\r\n"},
    "facts of an item": {b"mn": lambda _: b"HD k" + LISTED + b" s90 t-1 c1\r\n"},
    "the value that was asked for": {b"get": lambda words: b"VALUE %s 0 1\r\nx\r\n" % words[1]},
}


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def memcached_without_end(endless: Dict[bytes, Callable[[List[bytes]], bytes]]) -> Iterator[str]:
    with Server(("127.0.0.1", 0), MemcachedHandler) as server:
        server.endless = endless  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"memcached://127.0.0.1:{server.server_address[1]}?socket_timeout=20ms"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("what", ENDLESS_MEMCACHED)
def test_a_memcached_that_talks_without_end_is_cut_and_holds_no_thread(what: str) -> None:
    async def compute() -> str:
        return "answer"

    async def main(url: str) -> None:
        async with open_cache(url, tier_bytes=0) as cache:
            assert await cache.get_or_compute("key", compute) == "answer"
            for verb in (cache.usage, cache.verify):
                with pytest.raises(BackendUnavailableError):
                    await verb()
        # Closing waited for the threads.

    with memcached_without_end(ENDLESS_MEMCACHED[what]) as url:
        asyncio.run(asyncio.wait_for(main(url), 60))


ENDINGS: Dict[str, Tuple[bytes, Callable[[_Wire], object]]] = {
    "a line": (b"x", _Wire.line),
    "lines": (b"key=a\r\n", lambda wire: list(wire.lines_until(b"END"))),
    "texts": (b"key=a\r\n", lambda wire: list(wire.texts_until(b"END"))),
    "a value": (b"VALUE a 0 10000000\r\n", lambda wire: list(wire.values(1))),
}


class Trickling(socketserver.BaseRequestHandler):
    """Says the same piece again and again, with less between two than anybody would call silence."""

    server: Any

    def handle(self) -> None:
        with suppress(OSError):
            while True:
                self.request.sendall(self.server.piece)
                time.sleep(0.002)


@pytest.mark.parametrize("what", ENDINGS)
def test_what_trickles_from_a_memcached_is_cut_in_the_end(what: str) -> None:
    piece, read = ENDINGS[what]
    with Server(("127.0.0.1", 0), Trickling) as server:
        server.piece = piece  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        wire = _Wire(server.server_address, 20)
        wire.wait_for(20, 0.3)
        with pytest.raises(MemcacheUnexpectedCloseError, match="does not end"):
            read(wire)
        wire.close()
        server.shutdown()
        thread.join()


def test_a_memcached_that_answers_more_than_was_asked_is_not_listened_to() -> None:
    endless = {b"get": lambda words: b"VALUE %s 0 1\r\nx\r\n" % words[1], **ENDLESS_MEMCACHED["facts of an item"]}
    with memcached_without_end(endless) as url:
        port = int(url.split(":")[2].split("?")[0])
        server = Memcached("127.0.0.1", port, connect_timeout=20, timeout=20, patience=20, threads=1)
        for verb in (lambda: server.read(["a"]), lambda: server.items("cfc:default:")):
            with pytest.raises(BackendUnavailableError, match="what Memcached does not"):
                verb()
        server.close()


@contextmanager
def redis_that_replies(replies: Dict[str, Callable[[], bytes]]) -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.replies = {**GOOD, **replies}  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            # Time-outs are short, and so is what is a multiple of them.
            yield f"redis://127.0.0.1:{server.server_address[1]}?socket_timeout=30ms&max_bytes=100000"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("what", ENDLESS)
def test_what_lists_a_redis_without_end_gives_up(what: str) -> None:
    async def compute() -> str:
        return "answer"

    async def main(url: str) -> None:
        said = []
        async with open_cache(url, tier_bytes=0) as cache:
            assert await cache.get_or_compute("key", compute) == "answer"
            for verb in (cache.usage, cache.verify, cache.clear):
                try:
                    await verb()
                except BackendUnavailableError as error:
                    said.append(str(error))
        assert said

    with redis_that_replies(ENDLESS[what]) as url:
        asyncio.run(asyncio.wait_for(main(url), 60))


def test_a_redis_that_ends_is_listed() -> None:
    async def main(url: str) -> None:
        async with open_cache(url, tier_bytes=0) as cache:
            assert (await cache.usage()).entries == 1
            assert await cache.clear() == 1

    with redis_that_replies({}) as url:
        asyncio.run(asyncio.wait_for(main(url), 60))
