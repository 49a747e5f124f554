"""Lines in and lines out, in worker threads: the event loop never waits for a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import AsyncIterator, Iterator, List, Optional, Tuple, Union

import anyio.to_thread

__all__ = ["MAX_LINE", "Line", "LineReader", "LineWriter", "count_lines", "mend_lines"]

MAX_LINE = 4_000_000
"""Bytes. The longest task takes 100,000 characters, which JSON spells with at most 12 bytes each."""

_CHUNK = 1 << 18
_BATCHES_AHEAD = 2
_UNWRITTEN = 1 << 22

Line = Tuple[int, Optional[bytes]]
"""The number of a line, from 0, and its bytes; None for a line that is longer than MAX_LINE."""


class LineReader:
    """Iterates over the lines of an open file that are not blank, reading a little ahead in a thread.

    :raises OSError: while it is iterated over, if the file cannot be read.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Union[List[Line], OSError, None]] = asyncio.Queue()
        self._room = threading.Semaphore(_BATCHES_AHEAD)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the iteration before its next line, also while it waits for one. To be called in the event loop."""
        self._stopped.set()
        self._room.release()
        self._arrived.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Line]:
        # A thread that nobody waits for: a read of a terminal or a pipe cannot be interrupted.
        threading.Thread(target=self._read, name="claude-force reader", daemon=True).start()
        try:
            while True:
                item = await self._arrived.get()
                if item is None:
                    return
                if isinstance(item, OSError):
                    raise item
                for line in item:
                    if self._stopped.is_set():
                        return
                    yield line
                self._room.release()
        finally:
            self._stopped.set()
            self._room.release()

    def _read(self) -> None:
        try:
            for batch in _batches(self._descriptor):
                self._room.acquire()
                if self._stopped.is_set():
                    return
                self._send(batch)
        except OSError as error:
            self._send(error)
        else:
            self._send(None)

    def _send(self, item: Union[List[Line], OSError, None]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)
        except RuntimeError:
            self._stopped.set()  # the loop is closed, nobody listens


def count_lines(descriptor: int) -> int:
    """Return how many lines :class:`LineReader` would yield, and go back to the file's beginning.

    :raises OSError: if the file cannot be read.
    """
    count = sum(len(batch) for batch in _batches(descriptor))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return count


def mend_lines(descriptor: int) -> Iterator[Line]:
    """Iterate over the whole lines of a file that is open for both, and go to their end.

    What follows the last line's end was being written when its writer ended. It is cut off.

    :raises OSError: if the file cannot be read or cut.
    """
    end = size = os.lseek(descriptor, 0, os.SEEK_END)
    newline = -1
    while end and newline < 0:
        start = max(0, end - _CHUNK)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, end - start).rfind(b"\n")
        end = start + newline + 1
    if end < size:
        os.ftruncate(descriptor, end)
    os.lseek(descriptor, 0, os.SEEK_SET)
    for batch in _batches(descriptor):
        yield from batch


def _batches(descriptor: int) -> Iterator[List[Line]]:
    # Without Python's buffers: a daemon thread that sleeps inside one would abort the interpreter's exit.
    number, rest, overlong = 0, b"", False
    while True:
        chunk = os.read(descriptor, _CHUNK)
        pieces = (rest + chunk).split(b"\n")
        rest = pieces.pop() if chunk else b""
        batch: List[Line] = []
        for piece in pieces:
            if overlong or len(piece) > MAX_LINE:
                batch.append((number, None))
            elif piece.strip():
                batch.append((number, piece))
            number += 1
            overlong = False
        if len(rest) > MAX_LINE:
            rest, overlong = b"", True
        if batch:
            yield batch
        if not chunk:
            return


class LineWriter:
    """Writes whole lines to an open file in batches: while one is being written, the next one gathers.

    Use it in an ``async with`` block: leaving the block writes what has gathered, also on cancellation.

    :raises OSError: on leaving the block, if the file could not be written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: List[bytes] = []
        self._size = 0
        self._task: Optional[asyncio.Task[None]] = None
        self._error: Optional[OSError] = None

    async def __aenter__(self) -> LineWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None:
            raise self._error

    async def write(self, line: bytes) -> None:
        """Queue one line, without its end; wait only while too much of the earlier ones is unwritten.

        A caller that is cancelled while it waits has its line written all the same.

        :raises OSError: if the file could not be written.
        """
        if self._error is None:
            self._waiting.append(line + b"\n")
            self._size += len(line)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._drain())
        while self._size > _UNWRITTEN and self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None:
            raise self._error

    async def _drain(self) -> None:
        try:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                await anyio.to_thread.run_sync(self._write, data)
        except OSError as error:
            self._error = error
        finally:
            self._task = None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
