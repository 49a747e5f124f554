"""What many do at the same time: one worker's part, for tasks, threads and processes alike.

As a script, one worker's part in a process of its own. It reads from standard input the parent's ``sys.path`` as a
line of JSON, then what :func:`pickle.dumps` made of the backend's factory, the deed and the worker's number. It
writes an empty line when the backend is open, waits for another line, so that all begin at once, and writes what
the worker returned as JSON. Hence no import of this package here: the script would have to wait for it.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import sys
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List

if TYPE_CHECKING:
    from .._backend import Backend

__all__ = ["KEYS", "WORKERS"]

KEYS = [f"k{number}" for number in range(7)]
TURNS = 25


async def add(backend: Backend, number: int) -> List[str]:
    """Add each key; return those that this worker won."""
    won = []
    for turn in range(TURNS):
        if await backend.add(f"add-{turn}", str(number).encode(), ttl=None):
            won.append(f"add-{turn}")
        await asyncio.sleep(0)
    return won


async def write(backend: Backend, number: int) -> List[str]:
    """Do a bit of everything on a few keys; return nothing."""
    dice = random.Random(number)  # noqa: S311 - repeatable, and guards nothing
    for turn in range(TURNS):
        key = dice.choice(KEYS)
        verb = dice.randrange(9)
        value = bytes([number]) * dice.randrange(40)
        if verb < 4:
            await backend.set(key, value, ttl=dice.choice([None, 60]))
        elif verb == 4:
            await backend.add(key, value, ttl=None)
        elif verb == 5:
            await backend.delete(key)
        elif verb == 6:
            await backend.touch(key, ttl=dice.choice([None, 60]))
        elif verb == 7:
            await backend.set_many({key: (value, None), KEYS[turn % len(KEYS)]: (value, 60)})
        else:
            entry = await backend.get(key)
            if entry is not None:
                await backend.delete(key, version=entry.version)
        await asyncio.sleep(0)
    return []


async def store(backend: Backend, number: int) -> List[str]:
    """Store keys of its own, overwrite some and delete some; return those that are left."""
    left = []
    for turn in range(TURNS):
        key = f"own-{number}-{turn}"
        await backend.set(key, bytes(turn), ttl=None)
        if turn % 3 == 1:
            await backend.set(key, bytes(2 * turn), ttl=None)
        if turn % 3 == 2:
            await backend.delete(key)
        else:
            left.append(key)
    return left


async def take(backend: Backend, number: int) -> List[str]:
    """Put a ticket where there is none, and take away what was seen there; return each deed with the ticket."""
    deeds = []
    for turn in range(TURNS):
        ticket = f"{number}-{turn}"
        if await backend.add("ticket", ticket.encode(), ttl=None):
            deeds.append(f"put {ticket}")
        entry = await backend.get("ticket")
        if entry is not None:
            await asyncio.sleep(0)
            if await backend.delete("ticket", version=entry.version):
                deeds.append(f"take {entry.value.decode()}")
    return deeds


async def renew(backend: Backend, number: int) -> List[str]:
    """Overwrite a key of its own, and touch those of all; return what was lost of its own."""
    lost = []
    for turn in range(TURNS):
        value = f"{number}-{turn}".encode()
        await backend.set(f"own-{number}", value, ttl=None)
        for other in range(3):
            await backend.touch(f"own-{(number + other) % 6}", ttl=60)
        entry = await backend.get(f"own-{number}")
        if entry is None or entry.value != value:
            lost.append(value.decode())
    return lost


async def sweep(backend: Backend, number: int) -> List[str]:
    """Clear a few times as the first worker, else write on a few keys; return nothing."""
    if number:
        return await write(backend, number)
    # The others go on for longer: a clear that meets nobody would make the account right again.
    for _ in range(TURNS // 5):
        await backend.clear()
        await asyncio.sleep(0)
    return []


WORKERS: Dict[str, Callable[[Backend, int], Awaitable[List[str]]]] = {
    "add": add,
    "write": write,
    "store": store,
    "take": take,
    "renew": renew,
    "sweep": sweep,
}
"""Each does one worker's part, given its number, and returns what the others need to know of it."""


async def _work(factory: Callable[[], Any], deed: str, number: int) -> List[str]:
    from claude_force_cache import SyncBackend
    from claude_force_cache._threads import ThreadedBackend

    made = factory()
    backend = ThreadedBackend(made) if isinstance(made, SyncBackend) else made
    await backend.open()
    try:
        # Nothing else runs in this event loop.
        print(flush=True)  # noqa: T201 - the parent reads it
        sys.stdin.buffer.readline()
        return await WORKERS[deed](backend, number)
    finally:
        await backend.close()


def _main() -> None:
    sys.path[:] = json.loads(sys.stdin.buffer.readline())
    # What is read here was written by the process that started this one, a moment ago and into our own pipe.
    factory, deed, number = pickle.load(sys.stdin.buffer)  # noqa: S301
    json.dump(asyncio.run(_work(factory, deed, number)), sys.stdout)


if __name__ == "__main__":
    _main()
