"""A local Messages API in a process of its own: quick, slow to answer, and refusing when it is crowded.

Run as ``python -m benchmarks.busy_api LATENCY_MS MOST LENGTH``; it prints its port, and ends
when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Dict, Optional, Set, Type

from .payloads import text

__all__ = ["BusyAPI"]

_ANSWER = {
    "id": "msg_local",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-5-5",
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 512, "output_tokens": 4},
}
_REFUSAL = json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": "too many at once"}}).encode()


class BusyAPI:
    """The server, while the ``with`` block runs.

    :param latency_ms: milliseconds that each answer takes.
    :param most: how many requests it answers at once; more get a 429 that asks to wait a second. 0 is any number.
    :param length: of the answer's text, in characters.
    """

    def __init__(self, *, latency_ms: int, most: int = 0, length: int = 10) -> None:
        self._arguments = [str(latency_ms), str(most), str(length)]

    def __enter__(self) -> BusyAPI:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.busy_api", *self._arguments],
            cwd=str(Path(__file__).parents[1]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.base_url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """End the server, which then says what it did.

        :attr:`answered` and :attr:`refused` requests, how many of the former were :attr:`distinct`, and :attr:`most` at
        once.
        """
        out, _ = self._process.communicate()
        counts: Dict[str, int] = json.loads(out)
        self.answered, self.refused, self.most = counts["answered"], counts["refused"], counts["most"]
        self.distinct = counts["distinct"]


class _Server:
    def __init__(self, latency: float, most: int, length: int) -> None:
        self._latency = latency
        self._answer = json.dumps({**_ANSWER, "content": [{"type": "text", "text": text("busy", length)}]}).encode()
        self._limit = most
        self._current = 0
        self.counts = {"answered": 0, "refused": 0, "most": 0, "distinct": 0}
        self._bodies: Set[int] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
                writer.write(await self._reply(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _reply(self, body: bytes) -> bytes:
        if self._limit and self._current >= self._limit:
            self.counts["refused"] += 1
            return _response(b"429 Too Many Requests", _REFUSAL, b"retry-after: 1\r\n")
        self._current += 1
        self.counts["most"] = max(self.counts["most"], self._current)
        await asyncio.sleep(self._latency)
        self._current -= 1
        self.counts["answered"] += 1
        self._bodies.add(hash(body))
        self.counts["distinct"] = len(self._bodies)
        return _response(b"200 OK", self._answer)


def _response(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nrequest-id: req_local\r\n%scontent-length: %d\r\n\r\n%s"
        % (status, headers, len(body), body)
    )


async def _main(latency_ms: int, most: int, length: int) -> None:
    server = _Server(latency_ms / 1000, most, length)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    print(json.dumps(server.counts), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
