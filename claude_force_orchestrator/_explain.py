"""Explanations: whether a task would be answered from the cache, and if not, what is different."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Tuple

from claude_force_cache import BackendUnavailableError, Cache, StoredEntry

from ._answer import Answer, Parts
from ._freshness import Freshness
from ._request import Request, blind

__all__ = ["Explanation", "NearestEntry", "explain"]

_DETAILS = {
    "fresh": "the cache has an answer to this task",
    "stale": "the cache has an answer that is past its freshness; it is given while a new one is asked for",
    "absent": "the cache has no answer of this agent to this task",
    "expired": "the answer is past its freshness",
    "too-old": "the answer is older than max_age_hours allows",
    "invalidated": "the answer was invalidated",
    "corrupt": "the entry is not what was stored",
    "incomplete": "parts of the entry had to make room",
    "foreign": "the entry was sealed with another secret than CLAUDE_CACHE_SECRET",
    "excluded": "this agent is excluded from the cache by claude.json (exclude_agents, or its cache.enabled)",
    "off": "the cache is switched off (enable_cache, or cache.enabled in claude.json)",
    "unreachable": "the cache cannot be reached",
}


@dataclass(frozen=True)
class NearestEntry:
    """The stored answer of an agent whose request was most like the one that is explained.

    :param key: the stored key.
    :param age_seconds: its age.
    :param differs: the parts of the request that are different, such as ``definition``, ``model`` or ``task``.
    """

    key: str
    age_seconds: float
    differs: Tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What the cache would do with a task.

    :param agent_name: the agent.
    :param hit: whether the task would be answered from the cache.
    :param reason: ``fresh`` or ``stale`` for a hit; for a miss ``absent``, ``expired``, ``too-old``, ``invalidated``,
        ``corrupt``, ``incomplete``, ``foreign`` (sealed with another secret), ``excluded``, ``off`` or ``unreachable``.
    :param detail: the same in a sentence.
    :param key: the stored key, or None where the cache was not asked.
    :param age_seconds: the age of the entry that there is.
    :param remaining_seconds: how long it is still fresh, below 0 if it is not; None also for an entry that always is.
    :param tags: what the entry can be invalidated by.
    :param invalidated_by: those tags of it that were invalidated.
    :param nearest: for an absent answer the one that was asked for most alike, or None if the agent has none.
    """

    agent_name: str
    hit: bool
    reason: str
    detail: str
    key: Optional[str] = None
    age_seconds: Optional[float] = None
    remaining_seconds: Optional[float] = None
    tags: Tuple[str, ...] = ()
    invalidated_by: Tuple[str, ...] = ()
    nearest: Optional[NearestEntry] = None

    @classmethod
    def of_no_cache(cls, agent_name: str, reason: str, cause: str = "") -> Explanation:
        """Return the explanation for a task that no cache can answer."""
        return cls(agent_name, hit=False, reason=reason, detail=_detail(reason, cause))


async def explain(
    cache: Cache[Answer], request: Request, freshness: Freshness, *, clock: Callable[[], float]
) -> Explanation:
    """Return what the cache would do with a request, in whichever of its variants it would do best.

    :param freshness: what is asked of a stored answer.
    :param clock: the time in seconds since 1970.
    """
    agent_name = request.template.agent_name
    try:
        await cache.ping()
        found = []
        for variant in range(freshness.variants or 1):
            one = await _explain_variant(cache, request._replace(variant=variant), freshness, clock())
            if one.hit:
                return one
            found.append(one)
        present = [one for one in found if one.reason != "absent"]
        if present:
            return present[0]
        nearest = await _nearest(cache, agent_name, await blind(request.parts, cache), clock())
    except BackendUnavailableError as error:
        return Explanation.of_no_cache(agent_name, "unreachable", str(error))
    return Explanation(
        agent_name, hit=False, reason="absent", detail=_detail("absent"), key=found[0].key, nearest=nearest
    )


async def _explain_variant(cache: Cache[Answer], request: Request, freshness: Freshness, now: float) -> Explanation:
    agent_name = request.template.agent_name
    key = await cache.stored_key(request.key)
    stored = await cache.get_stored(key)
    if stored is None:
        # An entry that was sealed with an older secret has another name.
        entry = await cache.get_entry(request.key)
        if entry is None:
            return Explanation(agent_name, hit=False, reason="absent", detail=_detail("absent"), key=key)
        stored = StoredEntry(entry.key, 0, "ok", entry.created_at, entry.expires_at, entry.value, entry.tags)
    reason = _judge(stored, freshness, now)
    return Explanation(
        agent_name,
        hit=reason in {"fresh", "stale"},
        reason=reason,
        detail=_detail(reason, ", ".join(stored.invalidated_by)),
        key=stored.key,
        age_seconds=None if stored.created_at is None else max(0.0, now - stored.created_at),
        remaining_seconds=None if stored.expires_at is None else stored.expires_at - now,
        tags=stored.tags,
        invalidated_by=stored.invalidated_by,
    )


def _judge(stored: StoredEntry[Answer], freshness: Freshness, now: float) -> str:
    if stored.state not in {"ok", "stale"} or stored.created_at is None:
        return stored.state
    late = float("-inf") if stored.expires_at is None else now - stored.expires_at
    reason = "expired"
    max_age = freshness.lookup().get("max_age")
    if max_age is not None and now - stored.created_at - max_age > late:
        late, reason = now - stored.created_at - max_age, "too-old"
    if late < 0:
        return "fresh"
    return "stale" if late < freshness.fetch().get("stale_while_revalidate", 0.0) else reason


async def _nearest(cache: Cache[Answer], agent_name: str, parts: Parts, now: float) -> Optional[NearestEntry]:
    """Return the agent's entry with the same task that differs least, or else the one that differs least."""
    wanted = dict(parts)
    best = None
    async for stored in cache.scan():
        answer = stored.value
        if answer is None or stored.created_at is None or answer.agent_name != agent_name or not answer.parts:
            continue
        had = dict(answer.parts)
        differs = tuple(name for name in {**wanted, **had} if wanted.get(name) != had.get(name))
        rank = ("task" in differs, len(differs), -stored.created_at)
        if best is None or rank < best[0]:
            best = rank, NearestEntry(stored.key, max(0.0, now - stored.created_at), differs)
    return None if best is None else best[1]


def _detail(reason: str, cause: str = "") -> str:
    return f"{_DETAILS[reason]}: {cause}" if cause else _DETAILS[reason]
