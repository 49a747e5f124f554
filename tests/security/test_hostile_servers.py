"""A server that is not what the URL says: whatever it answers, a look-up is a miss and a call goes through."""

import asyncio
import os
import socket
import socketserver
import struct
import threading
from contextlib import contextmanager, suppress
from typing import Any, Iterator, List

import pytest

from claude_force_backends._redis_scripts import SCRIPTS
from claude_force_cache import MISSING, BackendUnavailableError, BytesCodec, open_cache

REDIS = {
    "nothing": b"$-1\r\n",
    "a number": b":7\r\n",
    "a text": b"+PONG\r\n",
    "an error": b"-ERR no\r\n",
    "an error in other words": b"-\xff\xfe\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "a list of lists of lists": b"*1\r\n" * 3000 + b":1\r\n",
    "a list that never ends": b"*2147483647\r\n" + b":1\r\n" * 20,
    "a text that never ends": b"$2147483647\r\nx",
    "a line that never ends": b"+" + b"x" * 300_000,
    "a length that is none": b"$abc\r\n",
    "a negative length": b"$-7\r\n",
    "an entry without a header": b"*1\r\n$3\r\nabc\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "a newer protocol": b"%1\r\n+a\r\n:1\r\n",
    "noise": os.urandom(200),
    "an entry of lists": b"*3\r\n*0\r\n*1\r\n:1\r\n$-1\r\n",
}
MEMCACHED = {
    "nothing": b"END\r\n",
    "an empty line": b"\r\n",
    "a value without a length": b"VALUE cfc 0\r\n",
    "a value of another key": b"VALUE other 0 1 1\r\nx\r\nEND\r\n",
    "a length that is none": b"VALUE a 0 x 1\r\n",
    "a value that never ends": b"VALUE a 0 2147483647 1\r\nx",
    "a line that never ends": b"x" * 300_000,
    "an item without fields": b"key=cfc%3A\r\nEND\r\nMN\r\n",
    "an error": b"SERVER_ERROR out of order\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "a setting that is none": b"STAT item_size_max huge\r\nEND\r\n",
    "settings of nothing": b"STAT a b\r\nEND\r\n",
    "noise": os.urandom(200),
}


@contextmanager
def server_that_says(reply: bytes) -> Iterator[str]:
    """Answer everything with ``reply``, and close only when the client does. Yield the ``host:port``."""
    connections = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(65536):
                    connection.sendall(reply)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        # A thread in accept() is not woken by close() alone.
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in connections:
        try:
            # A reset: what was sent and not read is forgotten at once.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed


@pytest.mark.parametrize(
    ("scheme", "reply"),
    [
        *(pytest.param("redis", reply, id=f"redis: {name}") for name, reply in REDIS.items()),
        *(pytest.param("memcached", reply, id=f"memcached: {name}") for name, reply in MEMCACHED.items()),
    ],
)
def test_it_costs_misses_and_raises_no_error_but_the_declared_one(scheme: str, reply: bytes) -> None:
    async def compute() -> bytes:
        return b"answer"

    async def main(where: str) -> None:
        said = []
        options = "socket_timeout=200ms" + ("&connect_timeout=200ms" if scheme == "memcached" else "")
        async with open_cache(f"{scheme}://{where}?{options}", codec=BytesCodec(), tier_bytes=0, timeout=0.3) as cache:
            assert await cache.get("key") is MISSING
            for number in range(3):
                assert (await cache.fetch(["key", number], compute, tags=["tag"])).value == b"answer"
            await cache.set("key", b"value")
            for verb in (cache.usage, cache.verify, cache.ping, lambda: cache.invalidate("tag")):
                try:
                    await verb()
                except BackendUnavailableError as error:
                    said.append(str(error))
        assert all(len(text.splitlines()) == 1 and len(text) < 600 for text in said)

    with server_that_says(reply) as where:
        asyncio.run(asyncio.wait_for(main(where), 30))


SCRIPT_NAMES = {script.sha.encode(): name for name, script in SCRIPTS.items()}
RECORD = b"cfc:{default}:partitions"
RIGHT = {
    "trim": b":0\r\n",
    "PERSIST": b":0\r\n",
    "RPUSH": b":1\r\n",
    "usage": b"*5\r\n:0\r\n:1\r\n$1\r\n0\r\n:1\r\n:70\r\n",
    "scan": b"*1\r\n$1\r\n0\r\n",
    "clear": b"*2\r\n:1\r\n:0\r\n",
}
ODD = [
    b"$-1\r\n",
    b"-NOSCRIPT no\r\n",
    b"*1\r\n:7\r\n",
    b"*1\r\n-ERR no\r\n",
    b"*1\r\n*17\r\n" + b"$1\r\na\r\n" * 17,
    b"*5\r\n:0\r\n:0\r\n$1\r\n0\r\n$-1\r\n$-1\r\n",
    b"*4\r\n$1\r\n0\r\n$2\r\n\xff\xfe\r\n$1\r\n1\r\n$0\r\n\r\n",
    b"*4\r\n$1\r\n0\r\n*0\r\n:1\r\n*0\r\n",
]


class OddRedis(socketserver.StreamRequestHandler):
    """Answers as Redis does, but for one verb or script."""

    server: Any

    def handle(self) -> None:
        try:
            while True:
                length = int(self.rfile.readline()[1:])
                parts = [self.rfile.read(int(self.rfile.readline()[1:]) + 2) for _ in range(length)]
                self.wfile.write(self.answer([part[:-2] for part in parts]))
        except (ValueError, OSError):
            return

    def answer(self, command: List[bytes]) -> bytes:
        verb = SCRIPT_NAMES.get(command[1], "") if command[0] == b"EVALSHA" else command[0].decode()
        if verb == self.server.odd_verb and command[1:2] != [RECORD]:
            return self.server.odd_reply  # type: ignore[no-any-return]
        if verb == "MGET":
            partitions = command[1] == RECORD
            return b"*%d\r\n" % (len(command) - 1) + (b"$1\r\n1\r\n" if partitions else b"$-1\r\n" * (len(command) - 1))
        return RIGHT.get(verb, b":1\r\n" if verb in SCRIPTS else b"+OK\r\n")


class OddServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.mark.parametrize("verb", ["MGET", "RPUSH", "PERSIST", "set", "usage", "scan", "clear"])
def test_a_redis_of_which_one_verb_is_odd_costs_misses_and_raises_no_error_but_the_declared_one(verb: str) -> None:
    async def compute() -> bytes:
        return b"answer"

    async def main(port: int) -> None:
        options = "socket_timeout=100ms&max_bytes=100000"
        async with open_cache(f"redis://127.0.0.1:{port}?{options}", codec=BytesCodec(), tier_bytes=0) as cache:
            assert await cache.get("key") is MISSING
            assert (await cache.fetch("key", compute, tags=["tag"])).value == b"answer"
            await cache.get_many(["one", "other"])
            for call in (cache.usage, cache.verify, cache.clear, cache.ping, lambda: cache.invalidate("tag")):
                with suppress(BackendUnavailableError):
                    await call()

    with OddServer(("127.0.0.1", 0), OddRedis) as server:
        server.odd_verb = verb  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for reply in ODD:
            server.odd_reply = reply  # type: ignore[attr-defined]
            asyncio.run(asyncio.wait_for(main(server.server_address[1]), 30))
        server.shutdown()
        thread.join()
