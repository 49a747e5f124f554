"""Events: pluggy hooks that tell what a cache does. Without a listener they cost nothing.

A listener is any object with methods named like those of :class:`CacheEvents`, marked with ``hookimpl``, each
taking the arguments that it wants. They are called in the event loop and must not block. An error that a
listener raises is logged and goes no further.
"""

from __future__ import annotations

import logging
from typing import Any, Optional, Sequence

import pluggy

from ._errors import BackendUnavailableError
from ._plugins import hookspec

__all__ = ["CacheEvents", "Events", "Listeners"]

_logger = logging.getLogger("claude_force_cache")


class CacheEvents:
    """The hooks. ``cache`` is the URL of the cache, without login; ``key`` is a stored key."""

    @hookspec
    def claude_force_cache_hit(self, cache: str, key: str, age: float, tier: bool, stale: bool) -> None:
        """Call when an answer was found, ``age`` seconds after it was made.

        ``tier``: in this process; ``stale``: no longer fresh.
        """

    @hookspec
    def claude_force_cache_miss(self, cache: str, key: str) -> None:
        """Call when nothing usable was found."""

    @hookspec
    def claude_force_cache_store(self, cache: str, key: str, size: int) -> None:
        """Call when an entry of ``size`` bytes was stored."""

    @hookspec
    def claude_force_cache_invalidate(self, cache: str, tags: Sequence[str]) -> None:
        """Call when all entries with one of the tags became misses."""

    @hookspec
    def claude_force_cache_evict(self, cache: str, count: int) -> None:
        """Call when ``count`` live entries had to go to make room."""

    @hookspec
    def claude_force_cache_corrupt(self, cache: str, key: str, reason: str) -> None:
        """Call when an entry was not what had been sealed, and was discarded."""

    @hookspec
    def claude_force_cache_lease(self, cache: str, key: str, waited: float, found: bool) -> None:
        """Call after ``waited`` seconds for another process that was making the value; ``found``: it is there."""

    @hookspec
    def claude_force_cache_outage(self, cache: str, error: BackendUnavailableError) -> None:
        """Call when the store, or writing to it alone, is given up for the time being."""

    @hookspec
    def claude_force_cache_recovery(self, cache: str) -> None:
        """Call when the store is back, or takes writes again."""


class Listeners:
    """Hands events to the listeners of one subject.

    :param spec: the class whose methods are the hooks.
    :param prefix: what the hooks' names begin with, before the event's own name.
    :param subject: whose events they are, for the log.
    """

    def __init__(self, spec: type, prefix: str, subject: str) -> None:
        self._spec = spec
        self._prefix = prefix
        self._subject = subject
        self._manager: Optional[pluggy.PluginManager] = None

    def register(self, listener: object) -> None:
        """Add a listener.

        :raises ValueError: if it is registered already, or a hook of it does not fit the specification.
        """
        if self._manager is None:
            self._manager = pluggy.PluginManager("claude_force_cache")
            self._manager.add_hookspecs(self._spec)
        try:
            self._manager.register(listener)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            if self._manager.is_registered(listener):  # releases of pluggy differ in how far they got
                self._manager.unregister(listener)
            raise ValueError(f"the listener does not fit: {error}") from None

    def unregister(self, listener: object) -> None:
        """Remove a listener.

        :raises ValueError: if it is not registered.
        """
        if self._manager is None or not self._manager.is_registered(listener):
            raise ValueError("the listener is not registered")
        self._manager.unregister(listener)
        if not self._manager.get_plugins():
            self._manager = None

    def __bool__(self) -> bool:
        return self._manager is not None

    def emit(self, event: str, **arguments: Any) -> None:
        """Call a hook, if anybody listens."""
        manager = self._manager
        if manager is None:
            return
        try:
            getattr(manager.hook, f"{self._prefix}_{event}")(**arguments)
        except Exception:
            _logger.exception("a listener of %s failed on %s", self._subject, event)


class Events(Listeners):
    """Hands events to the listeners of one cache."""

    def __init__(self, cache: str) -> None:
        super().__init__(CacheEvents, "claude_force_cache", f"cache {cache}")
        self._cache = cache

    def emit(self, event: str, **arguments: Any) -> None:
        """Call a hook with the cache's URL, if anybody listens."""
        if self._manager is not None:
            super().emit(event, cache=self._cache, **arguments)
