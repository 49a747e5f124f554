"""Which cores client, threads and servers run on. Left to the scheduler, they flip, and costs change threefold."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, NamedTuple, Set

__all__ = ["ANY", "ONE", "TWO", "Placement", "placements"]


class Placement(NamedTuple):
    """Where things run.

    :param name: what the report calls it.
    :param loop: the cores of the thread with the event loop, by their positions among those that are allowed.
    :param rest: the cores of all other threads, and of servers; both are empty where nothing can be placed.
    """

    name: str
    loop: Set[int]
    rest: Set[int]

    @contextmanager
    def servers(self) -> Iterator[None]:
        """Give programs that are started inside the place of servers."""
        with _moved(self.rest):
            yield

    @contextmanager
    def client(self) -> Iterator[None]:
        """Put this thread, which is the one of the event loop, into its place."""
        with _moved(self.loop):
            yield

    def settle(self) -> None:
        """Put this process's other threads into their place, which they do not inherit. Call it between rounds."""
        if self.rest:
            cores = _cores(self.rest)
            for thread in (int(folder.name) for folder in _THREADS.iterdir()):
                if thread != threading.get_native_id():
                    try:
                        os.sched_setaffinity(thread, cores)
                    except ProcessLookupError:  # it has ended meanwhile
                        continue


ONE = Placement("one core", {0}, {0})
TWO = Placement("two cores", {0}, {1})
ANY = Placement("any core", set(), set())

_THREADS = Path("/proc/self/task")
_ALLOWED: List[int] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def placements(*, alone: bool = False) -> List[Placement]:
    """Return the placements to measure: one core and two, where the system lets us choose.

    :param alone: whether there are neither threads nor servers, so that one core is all that is used.
    """
    if not _ALLOWED or not _THREADS.is_dir():
        return [ANY]
    return [ONE] if alone or len(_ALLOWED) < 2 else [ONE, TWO]


def _cores(positions: Set[int]) -> Set[int]:
    return {_ALLOWED[position] for position in positions}


@contextmanager
def _moved(positions: Set[int]) -> Iterator[None]:
    if not positions:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _cores(positions))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
