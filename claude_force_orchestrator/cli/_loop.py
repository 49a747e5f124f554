"""Running a command's coroutine so that Ctrl-C ends it in good order."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any, Callable, Coroutine, Dict, Optional, TypeVar

from ._failure import INTERRUPTED, CommandError

__all__ = ["GOES_ON", "RESUME", "STOPPING", "STOPPING_BATCHES", "run_command"]

T = TypeVar("T")

GOES_ON = "interrupted: the same command goes on where it stopped, what is cached is not asked again"
"""What to tell of a command that asks many tasks of a cache."""

RESUME = "interrupted: the same command with --resume goes on where it stopped, what is cached is not asked again"
"""The same of a command that also keeps what it has written."""

STOPPING = "stopping: calls that are under way are finished; once more to end at once"
"""What to tell when the first signal comes."""

STOPPING_BATCHES = "stopping: batches that are under way go on, and the same command picks them up"
"""The same where the API works on its own."""


_INSIST = 5.0
"""Seconds after which what is still there of a command that was to end at once is cancelled again."""


def run_command(
    main: Coroutine[Any, Any, T],
    *,
    interrupted: str = "interrupted: start it again",
    stop: Optional[Callable[[], None]] = None,
) -> T:
    """Return the result of ``main``, which is cancelled on Ctrl-C and on SIGTERM.

    Cancelled, it still closes what it opened and writes what it has; another Ctrl-C ends it at once.

    :param interrupted: what to tell the user then.
    :param stop: called instead at the first signal, in the event loop, so that ``main`` ends by itself.
    :raises CommandError: with the exit code of an interruption, if it was interrupted.
    """
    return asyncio.run(_until_interrupted(main, interrupted, stop))


async def _until_interrupted(main: Coroutine[Any, Any, T], interrupted: str, stop: Optional[Callable[[], None]]) -> T:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    handled: Dict[signal.Signals, Any] = {}
    arrived = False

    def release() -> None:
        while handled:
            number, before = handled.popitem()
            loop.remove_signal_handler(number)
            signal.signal(number, before)

    def interrupt() -> None:
        nonlocal arrived
        first, arrived = not arrived, True
        if first and stop is not None:
            stop()
            return
        release()
        task.cancel()
        if stop is not None and sys.version_info < (3, 11):
            loop.call_later(_INSIST, insist)

    def insist() -> None:
        # Tasks do not count cancellations before 3.11, and one of very many may miss its own.
        for each in asyncio.all_tasks(loop):
            each.cancel()
        loop.call_later(_INSIST, insist)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, interrupt)
            handled[number] = before
    except (NotImplementedError, RuntimeError, ValueError):
        pass  # Windows, or not the main thread: KeyboardInterrupt comes by itself
    try:
        result = await task
    except asyncio.CancelledError:
        if arrived:
            raise CommandError(interrupted, INTERRUPTED) from None
        raise
    finally:
        release()
    if arrived and stop is not None:
        raise CommandError(interrupted, INTERRUPTED)
    return result
