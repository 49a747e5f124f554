"""A Messages API on loopback that counts: what it was asked, how often, and when it answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from contextlib import suppress
from types import TracebackType
from typing import Counter as Counts
from typing import DefaultDict, Dict, Optional, Set, Type

__all__ = ["MessagesAPI", "answer_to"]


def answer_to(task: str) -> str:
    """Return what the API answers."""
    return f"The answer to {task!r}."


class MessagesAPI:
    """Answers every task at once, in the event loop in which it was opened.

    ``calls`` counts the requests by task, for each API key; ``called`` has the moment of a task's last one, by
    ``time.perf_counter()``.
    """

    def __init__(self) -> None:
        self.calls: DefaultDict[str, Counts[str]] = defaultdict(Counter)
        self.called: Dict[str, float] = {}
        self.url = ""
        self._connections: Set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> MessagesAPI:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = "http://127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Optional[asyncio.Task[None]] = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # A client that leaves ends its connection, and so does the end of the server.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        parted = (line.partition(":") for line in head.split("\r\n"))
        headers = {name: value.strip() for name, _, value in parted}
        request = json.loads(await reader.readexactly(int(headers["content-length"])))
        task = request["messages"][0]["content"]
        # By the version of the SDK, the key is in one or the other.
        key = headers.get("x-api-key") or headers["authorization"].partition(" ")[2]
        self.calls[key][task] += 1
        self.called[task] = time.perf_counter()
        reply = {
            "id": "msg_local",
            "type": "message",
            "role": "assistant",
            "model": request["model"],
            "content": [{"type": "text", "text": answer_to(task)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 512, "output_tokens": 64},
        }
        body = json.dumps(reply).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_local\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )
        await writer.drain()
