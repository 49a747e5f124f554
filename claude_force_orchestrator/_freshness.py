"""Freshness: how old an answer may be, by agent and by call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional

from ._errors import (
    CallTimeoutError,
    ConfigError,
    ConnectionFailedError,
    InvalidTaskError,
    OverloadedError,
    ProjectError,
    RateLimitError,
    ServerError,
    SpendLimitError,
)
from ._validation import check_number, check_whole

__all__ = ["FRESHNESS_KEYS", "MOST_HOURS", "MOST_VARIANTS", "Freshness", "passes"]

MOST_HOURS = 24 * 366 * 100
MOST_VARIANTS = 100

_HOUR = 3600.0
_PASSING = (RateLimitError, OverloadedError, ServerError, CallTimeoutError, ConnectionFailedError)


@dataclass(frozen=True)
class Freshness:
    """How old an answer may be, and how many there are to a question. None leaves it to whoever is asked next.

    The order is: the call's arguments, the agent in claude.json, the section ``cache`` there, the default.

    :param ttl_hours: how long a new answer is fresh. The default is the cache's own.
    :param max_age_hours: the age from which a stored answer is not fresh enough, whatever its own life. By default
        there is no such bound.
    :param stale_while_revalidate_hours: for how long after its freshness an answer is still given at once, marked
        as stale, while a new one is asked for in the background. The default is 0.
    :param stale_if_error_hours: for how long after its freshness an answer is given, marked as stale, if the API
        cannot answer for the time being; see :func:`passes`. The default is 0.
    :param refresh_ahead: the last share of an answer's freshness, 0 to 1, in which it is given while a new one is asked
        for in the background, once, so that an answer in use is never late. The default is 0.
    :param variants: how many answers are kept for each question; a call gets one of them at random. The default
        is 1.
    """

    ttl_hours: Optional[float] = None
    max_age_hours: Optional[float] = None
    stale_while_revalidate_hours: Optional[float] = None
    stale_if_error_hours: Optional[float] = None
    refresh_ahead: Optional[float] = None
    variants: Optional[int] = None

    @classmethod
    def of_call(cls, **given: Any) -> Optional[Freshness]:
        """Return the freshness that a call's arguments ask for, or None if they are all None.

        :raises InvalidTaskError: if one of them cannot be used.
        """
        if set(map(type, given.values())) == _ABSENT:
            return None
        try:
            return cls(**{name: _check(name, name, value) for name, value in given.items()})
        except ConfigError as error:
            raise InvalidTaskError(str(error)) from None

    @classmethod
    def of_table(cls, where: str, table: Mapping[str, Any]) -> Freshness:
        """Return the freshness that a table of claude.json asks for; its other keys are not looked at.

        :param where: what the table is, for messages.
        :raises ProjectError: if a value cannot be used.
        """
        try:
            return cls(**{name: _check(f"{where}.{name}", name, table.get(name)) for name in FRESHNESS_KEYS})
        except ConfigError as error:
            raise ProjectError(str(error)) from None

    def over(self, other: Freshness) -> Freshness:
        """Return what this says, and where it says nothing, what the other one says."""
        if other == _NOTHING:
            return self
        mine = asdict(self)
        return Freshness(**{name: value if mine[name] is None else mine[name] for name, value in asdict(other).items()})

    def lookup(self) -> Dict[str, Any]:
        """Return the arguments of ``Cache.get_entry``, in seconds."""
        return {} if self.max_age_hours is None else {"max_age": self.max_age_hours * _HOUR}

    def kept_seconds(self, ttl: Optional[float]) -> Optional[float]:
        """Return how long a new answer may be given, in seconds, stale included; None is for ever.

        :param ttl: the cache's own life of answers in seconds.
        """
        life = ttl if self.ttl_hours is None else self.ttl_hours * _HOUR
        late = max(self.stale_while_revalidate_hours or 0.0, self.stale_if_error_hours or 0.0)
        return None if life is None else life + late * _HOUR

    def fetch(self) -> Dict[str, Any]:
        """Return the arguments of ``Cache.fetch``, in seconds; those that have their default are left out."""
        arguments = self.lookup()
        if self.ttl_hours is not None:
            arguments["ttl"] = self.ttl_hours * _HOUR
        if self.stale_while_revalidate_hours:
            arguments["stale_while_revalidate"] = self.stale_while_revalidate_hours * _HOUR
        if self.stale_if_error_hours:
            arguments["stale_if_error"] = self.stale_if_error_hours * _HOUR
            arguments["stale_if"] = passes
        if self.refresh_ahead:
            arguments["refresh_ahead"] = self.refresh_ahead
        return arguments


_NOTHING = Freshness()
_ABSENT = {type(None)}
FRESHNESS_KEYS = tuple(asdict(_NOTHING))
"""The names of the fields, which are also the keys in claude.json and the arguments of a call."""


def passes(error: Exception) -> bool:
    """Whether an error says that the API cannot answer for the time being, so that an old answer helps.

    Rate limits, overload, faults of the server, time-outs and lost connections pass. A request or a key that is not
    accepted, an account's spend limit and a defect of this package do not: an old answer would hide them.
    """
    return isinstance(error, _PASSING) and not isinstance(error, SpendLimitError)


def _check(shown: str, name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "variants":
        return check_whole(shown, value, least=1, most=MOST_VARIANTS)
    if name == "refresh_ahead":
        return check_number(shown, value, least=0, most=1)
    if name == "ttl_hours":
        return check_number(shown, value, above=0, most=MOST_HOURS)
    return check_number(shown, value, least=0, most=MOST_HOURS)
