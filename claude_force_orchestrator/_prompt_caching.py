"""Prompt caching: which requests ask the API to remember their system prompt, so that the next ones pay less for it."""

from __future__ import annotations

import threading
from typing import Callable, Dict, NamedTuple, Optional, Tuple

from claude_force_cache import Digest

from ._prices import PriceList
from ._request import RequestTemplate

__all__ = ["LIFE_SECONDS", "Mark", "PromptCaching"]

LIFE_SECONDS = 300.0
"""How long the API keeps what is written, from its last use on."""

_CHARACTERS_PER_TOKEN = 4
_MOST = 1024


class _Prefix:
    """What is known of one system prompt in the API's cache for one model."""

    __slots__ = ("cached_until", "ignored", "sent", "writing")

    def __init__(self) -> None:
        self.sent = float("-inf")
        self.cached_until = float("-inf")
        self.writing = False
        self.ignored = False


class Mark(NamedTuple):
    """What was decided for one request, to be given back with what came of it.

    :param wanted: whether it asks the API to remember its system prompt.
    """

    wanted: bool = False
    writes: bool = False
    sent: float = 0.0
    prefix: Optional[_Prefix] = None


class PromptCaching:
    """Decides for each request whether its system prompt is marked for the API's own prompt cache.

    To write costs a quarter more than ordinary prompt tokens, to read a tenth of them or less, and what is written
    lasts for five minutes after its last use. So a prompt is written by the first request that follows another one with
    the same prompt within five minutes; only by one at a time, since nobody can read it before that one is answered;
    and from then on it is read, as long as requests follow within five minutes. At worst, when none does, a quarter of
    one prompt is lost.

    The API takes no short prompts; their mark changes nothing. One of which it reports neither a write nor a read is
    not marked again.

    :param enabled: whether anything is marked.
    :param prices: knows from what length on each model's prompts are taken.
    :param clock: seconds since 1970.
    """

    def __init__(self, prices: PriceList, *, enabled: bool, clock: Callable[[], float]) -> None:
        self._prices = prices
        self._enabled = enabled
        self._clock = clock
        self._lock = threading.Lock()
        self._prefixes: Dict[Tuple[str, Digest], _Prefix] = {}

    def mark(self, template: RequestTemplate) -> Mark:
        """Return whether a request that is sent now is marked. :meth:`learn` has to follow."""
        least = _CHARACTERS_PER_TOKEN * self._prices.least_cacheable(template.model)
        if not self._enabled or sum(map(len, template.definition.blocks)) < least:
            return Mark()
        key, now = (template.model, template.definition.digest), self._clock()
        with self._lock:
            prefix = self._prefixes.get(key)
            if prefix is None:
                if len(self._prefixes) >= _MOST:
                    self._prefixes.clear()
                prefix = self._prefixes[key] = _Prefix()
            reads = now < prefix.cached_until
            writes = not reads and not prefix.writing and now - prefix.sent < LIFE_SECONDS
            prefix.sent = now
            if prefix.ignored or not (reads or writes):
                return Mark()
            prefix.writing = prefix.writing or writes
            return Mark(True, writes, now, prefix)

    def learn(self, mark: Mark, tokens: Optional[int]) -> None:
        """Learn what came of a request.

        :param tokens: how many prompt tokens it wrote to the cache or read from it, or None if it was not answered.
        """
        prefix = mark.prefix
        if prefix is None:
            return
        with self._lock:
            if mark.writes:
                prefix.writing = False
            if tokens:
                prefix.cached_until = max(prefix.cached_until, mark.sent + LIFE_SECONDS)
            elif tokens == 0:
                prefix.ignored = True
