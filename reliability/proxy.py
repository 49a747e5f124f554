"""A TCP proxy that a test puts in front of a server, to have it fail as networks and servers do.

In a program: ``async with FaultProxy(host, port) as proxy: ... await proxy.set("silence")``. As a process of its own,
``python -m reliability.proxy HOST PORT`` prints the port that it listens on, reads faults from its standard input, one
a line (``latency 0.05``), answers each with ``ok``, and ends with its input.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import Dict, Optional, Set, Type

__all__ = ["FAULTS", "FaultProxy"]

FAULTS: Dict[str, str] = {
    "pass": "everything passes",
    "latency": "each piece is held back for so many seconds, in each direction",
    "silence": "connections are accepted, and what comes is swallowed; those that are open fall silent",
    "refuse": "nobody listens; connections that are open are cut",
    "reset": "connections are accepted and cut at the first byte; those that are open at their next",
    "cut": "each connection is cut after so many bytes of replies",
}
"""What :meth:`FaultProxy.set` takes, and what it means."""

_CHUNK = 1 << 16


class FaultProxy:
    """Passes bytes between clients and ``host:port``, as far as its fault lets it. Listens on loopback.

    ``port`` is that of the proxy, the same as long as it exists; ``accepted`` and ``requests`` count the connections
    and the pieces that came from clients.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.accepted = 0
        self.requests = 0
        self._target = (host, port)
        self._fault = "pass"
        self._amount = 0.0
        self._listener: Optional[asyncio.AbstractServer] = None
        self._pipes: Set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        return "127.0.0.1"

    async def __aenter__(self) -> FaultProxy:
        await self._listen()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        await self._stop()

    async def set(self, fault: str, amount: float = 0.0) -> None:
        """Fail so from now on.

        :raises ValueError: if there is no such fault.
        """
        if fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}: expected one of {', '.join(FAULTS)}")
        self._fault, self._amount = fault, amount
        if fault == "refuse":
            await self._stop()
        elif self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task: Optional[asyncio.Task[None]] = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        server: Optional[asyncio.StreamWriter] = None
        try:
            replies, server = await asyncio.open_connection(*self._target)
            directions = [
                asyncio.ensure_future(self._pump(reader, server, from_client=True)),
                asyncio.ensure_future(self._pump(replies, writer, from_client=False)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the client sees its connection end
        finally:
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()
            self._pipes.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool) -> None:
        passed = 0
        with suppress(OSError):
            while True:
                data = await reader.read(_CHUNK)
                if not data or self._fault == "reset":
                    return
                if from_client:
                    self.requests += 1
                if self._fault == "silence":
                    continue
                if self._fault == "latency":
                    await asyncio.sleep(self._amount)
                if self._fault == "cut" and not from_client:
                    data = data[: max(0, int(self._amount) - passed)]
                passed += len(data)
                writer.write(data)
                await writer.drain()
                if self._fault == "cut" and not from_client and passed >= self._amount:
                    return


async def _serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    async with FaultProxy(host, port) as proxy:
        print(proxy.port, flush=True)
        while True:
            line = await loop.run_in_executor(None, sys.stdin.readline)
            if not line:
                return
            fault, _, amount = line.strip().partition(" ")
            try:
                await proxy.set(fault, float(amount or 0))
            except ValueError as error:
                print(f"error: {error}", flush=True)
            else:
                print("ok", flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
