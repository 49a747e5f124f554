"""Metrics: what recorded executions add up to. Everything here blocks."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ._executions import COLUMNS, Executions

__all__ = ["PERIODS", "Figures", "Period", "Selection", "figures", "select", "span"]


class Period(NamedTuple):
    """A way to divide time. All in seconds, in UTC.

    :param length: how long each period is.
    :param offset: when the first one after 1970 began.
    """

    length: int
    offset: int = 0

    def start(self, moment: float) -> float:
        """Return when the period began that a moment lies in."""
        return (moment - self.offset) // self.length * self.length + self.offset


PERIODS = {"hour": Period(3600), "day": Period(86_400), "week": Period(7 * 86_400, 4 * 86_400)}
"""Periods by name. Weeks begin on Mondays."""


class Selection(NamedTuple):
    """Which executions are meant.

    :param since: those that ended at this time or later, in seconds since 1970.
    :param until: those that ended before.
    :param agent: those of this agent.
    :param model: those of this model.
    """

    since: Optional[float] = None
    until: Optional[float] = None
    agent: Optional[str] = None
    model: Optional[str] = None

    @property
    def where(self) -> Tuple[str, Dict[str, Any]]:
        """The condition, and its parameters."""
        conditions = {
            "since": "ended >= :since",
            "until": "ended < :until",
            "agent": "agent = :agent",
            "model": "model = :model",
        }
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return " AND ".join(["1", *(conditions[name] for name in given)]), given


@dataclass(frozen=True)
class Figures:
    """What executions add up to. A figure that nothing is known of is None.

    :param executions: how many there were.
    :param hits: how many were answered without a call of their own.
    :param misses: how many were answered by a call, after the cache had been asked.
    :param bypasses: how many were answered by a call, and did not ask the cache.
    :param failures: how many have no answer of use.
    :param cancelled: how many were not waited for.
    :param background: answers that were paid for beside these.
    :param input_tokens: what was paid for: prompt tokens that the API's own prompt cache had no part in.
    :param output_tokens: likewise, tokens of answers.
    :param cache_write_tokens: likewise, prompt tokens written to the API's prompt cache.
    :param cache_read_tokens: likewise, prompt tokens read from it.
    :param spent: USD, over the answers whose price is known.
    :param saved: USD, likewise, by the cache.
    :param prompt_cache_saved: USD, likewise, by the API's own prompt cache; below 0.0 if more was written there than
        read.
    :param unknown_spent: paid answers whose price is not known.
    :param unknown_saved: saved answers whose price is not known.
    :param hit_seconds: the median time of a hit, in seconds.
    :param hit_seconds_p95: the time that 95 of 100 hits took at most.
    :param call_seconds: the median time of an execution that was answered by a call.
    :param call_seconds_p95: the time that 95 of 100 of those took at most.
    """

    executions: int = 0
    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    failures: int = 0
    cancelled: int = 0
    background: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    spent: float = 0.0
    saved: float = 0.0
    prompt_cache_saved: float = 0.0
    unknown_spent: int = 0
    unknown_saved: int = 0
    hit_seconds: Optional[float] = None
    hit_seconds_p95: Optional[float] = None
    call_seconds: Optional[float] = None
    call_seconds_p95: Optional[float] = None

    @property
    def hit_rate(self) -> Optional[float]:
        """The share of hits in what was looked up and answered, 0 to 1, or None if that is nothing."""
        looked_up = self.hits + self.misses
        return self.hits / looked_up if looked_up else None


_GROUPS = {
    None: "NULL",
    "agent": "agent",
    "model": "model",
    "period": "CAST((ended - :offset) / :length AS INTEGER) * :length + :offset",
}
_SUMS = {
    "executions": "count(*) - sum(outcome = 'background')",
    "hits": "sum(outcome = 'hit')",
    "misses": "sum(outcome = 'miss')",
    "bypasses": "sum(outcome = 'bypass')",
    "failures": "sum(outcome = 'failure')",
    "cancelled": "sum(outcome = 'cancelled')",
    "background": "sum(outcome = 'background')",
    # What cost nothing was not paid for; what it cost may not be known.
    **{
        name: f"coalesce(sum(CASE WHEN coalesce(cost, 1) > 0 THEN {name} END), 0)"
        for name in ("input_tokens", "output_tokens", "cache_write_tokens", "cache_read_tokens")
    },
    "spent": "coalesce(sum(cost), 0.0)",
    "saved": "coalesce(sum(saved), 0.0)",
    "prompt_cache_saved": "coalesce(sum(prompt_cache_saved), 0.0)",
    "unknown_spent": "sum(cost IS NULL)",
    "unknown_saved": "sum(saved IS NULL)",
}


def figures(
    executions: Executions, selection: Selection, by: Optional[str] = None, *, period: Period = PERIODS["day"]
) -> List[Tuple[Any, Figures]]:
    """Return the figures of each group: of each agent or model, of each period with its start, or of all.

    :param by: ``agent``, ``model``, ``period``, or None for one group of all, which may be empty.
    :param period: the periods, for ``period``. Empty ones are left out.
    """
    if not executions.exists:
        return [(None, Figures())] if by is None else []
    (where, given), group = selection.where, _GROUPS[by]
    given.update(period._asdict())
    sums = ", ".join(f"{expression} AS {name}" for name, expression in _SUMS.items())
    # Of what is put together here, nothing comes from outside; values are parameters.
    totals = executions.file.execute(
        f"SELECT {group} AS g, {sums} FROM executions WHERE {where} GROUP BY g ORDER BY g",  # noqa: S608 - see above
        given,
    )
    found: Dict[Any, Dict[str, Any]] = {row[0]: dict(zip(_SUMS, row[1:])) for row in totals}
    latencies = executions.file.execute(
        f"""SELECT g, hit, latency, place = (count + 1) / 2, place = (95 * count + 99) / 100 FROM (
            SELECT *, row_number() OVER (PARTITION BY g, hit ORDER BY latency) AS place,
                count(*) OVER (PARTITION BY g, hit) AS count
            FROM (
                SELECT {group} AS g, outcome = 'hit' AS hit, latency FROM executions
                WHERE {where} AND outcome IN ('hit', 'miss', 'bypass')
            )
        ) WHERE place IN ((count + 1) / 2, (95 * count + 99) / 100)""",  # noqa: S608 - see above
        given,
    )
    for key, hit, seconds, median, late in latencies:
        name = "hit_seconds" if hit else "call_seconds"
        found[key].update({name: seconds} if median else {}, **({f"{name}_p95": seconds} if late else {}))
    if by is None and not found:
        return [(None, Figures())]
    return [(key, Figures(**values)) for key, values in found.items()]


def span(executions: Executions, selection: Selection) -> Optional[Tuple[float, float]]:
    """Return when the first and the last execution of a selection ended, or None if there is none."""
    if not executions.exists:
        return None
    where, given = selection.where
    row = executions.file.execute(
        f"SELECT min(ended), max(ended) FROM executions WHERE {where}",  # noqa: S608 - names of ours
        given,
    ).fetchone()
    return None if row[0] is None else (row[0], row[1])


def select(executions: Executions, selection: Selection) -> Iterator[Dict[str, Any]]:
    """Yield the executions of a selection, the earliest first, each with its columns by name."""
    if not executions.exists:
        return
    where, given = selection.where
    rows: sqlite3.Cursor = executions.file.execute(
        f"SELECT {', '.join(COLUMNS)} FROM executions WHERE {where} ORDER BY ended, id",  # noqa: S608 - names of ours
        given,
    )
    for row in rows:
        record = dict(zip(COLUMNS, row))
        record.update(stale=bool(record["stale"]), streamed=bool(record["streamed"]))
        yield record
