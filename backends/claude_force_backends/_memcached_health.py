"""Whether one of several Memcached servers is asked, and what its failure means to the others.

A server that fails is left alone for twenty times as long as that took, at most a second: one that refuses
connections is tried again almost at once, one that lets its callers wait costs one of them a time-out each second.
Then a single call goes through; the others go on without the server until that one is back.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Sequence

from claude_force_cache import BackendUnavailableError, PartlyUnavailableError

__all__ = ["Health"]

_PAUSE_FACTOR = 20
_LONGEST_PAUSE = 1.0
_logger = logging.getLogger("claude_force_cache")


class Health:
    """What is known of one server. Thread-safe.

    :param address: what to call the server.
    :param clock: seconds that only go forward.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._peers: Sequence[Health] = ()
        self._reason = ""
        self._next_try = 0.0
        self._lock = threading.Lock()

    @property
    def is_down(self) -> bool:
        """Whether the last call that reached for the server failed."""
        return bool(self._reason)

    def join(self, servers: Sequence[Health]) -> None:
        """Take the other ones of ``servers`` for its peers; a server without peers is always asked."""
        self._peers = [server for server in servers if server is not self]

    def lift(self) -> None:
        """Let the next call through."""
        self._next_try = 0.0

    def admit(self) -> None:
        """Return if the server may be asked.

        :raises BackendUnavailableError: if it failed a moment ago, or somebody is trying it right now.
        """
        if not self._reason or not self._peers:
            return
        with self._lock:
            now = self._clock()
            if now >= self._next_try:
                self._next_try = now + _LONGEST_PAUSE
                return
        raise self.error(self._reason)

    def worked(self) -> None:
        """Note that the server answered."""
        if self._reason:
            with self._lock:
                was_down, self._reason = bool(self._reason), ""
            if was_down and self._peers:
                _logger.warning("Memcached at %s answers again", self._address)

    def failed(self, reason: str, seconds: float) -> BackendUnavailableError:
        """Note that the server did not answer, after so many seconds; return the error to raise."""
        with self._lock:
            was_down, self._reason = bool(self._reason), reason
            self._next_try = self._clock() + min(_LONGEST_PAUSE, _PAUSE_FACTOR * seconds)
        error = self.error(reason)
        if not was_down and isinstance(error, PartlyUnavailableError):
            _logger.warning("going on with the other servers: %s", reason)
        return error

    def error(self, reason: str) -> BackendUnavailableError:
        """Return the error for a failure of this server: of a part of the store, while any other one works."""
        works = any(not peer.is_down for peer in self._peers)
        return PartlyUnavailableError(reason) if works else BackendUnavailableError(reason)
