"""The report: one page of HTML with everything in it, which needs neither scripts nor a network."""

from __future__ import annotations

import pkgutil
from html import escape
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from .._metrics import Figures, Period
from ._amounts import money_text, percent_text, time_text
from ._charts import Chart, Series, bars, lines
from ._moments import when_text

__all__ = ["MOST_PERIODS", "ReportData", "fitting_period", "period_starts", "write_report"]

MOST_PERIODS = 2_000
"""How many periods a chart can show."""

_DAY = 86_400.0
_PATTERNS = {"hour": "%d %b %H:%M", "day": "%d %b", "week": "%d %b %Y"}
_WHOLE = {"hour": "%Y-%m-%d %H:%M", "day": "%Y-%m-%d", "week": "%Y-%m-%d"}
_COLUMNS = (
    "Executions",
    "Hits",
    "Hit rate",
    "Failures",
    "Spent",
    "Saved",
    "Prompt caching",
    "Hit time",
    "Call time",
)


class ReportData(NamedTuple):
    """What a report is about.

    :param made: when it is made, in seconds since 1970.
    :param chosen: which executions were chosen, in words, or the empty string.
    :param span: when the first and the last of them ended.
    :param period: the name of the periods.
    :param total: all of them.
    :param agents: those of each agent.
    :param models: those of each model.
    :param periods: those of each period with its start, the earliest first, empty ones included.
    """

    made: float
    chosen: str
    span: Tuple[float, float]
    period: str
    total: Figures
    agents: Sequence[Tuple[Any, Figures]]
    models: Sequence[Tuple[Any, Figures]]
    periods: Sequence[Tuple[float, Figures]]


def fitting_period(first: float, last: float) -> str:
    """Return the name of the periods that a chart of some time shows best."""
    days = (last - first) / _DAY
    return "hour" if days <= 3 else "day" if days <= 120 else "week"


def period_starts(period: Period, first: float, last: float) -> range:
    """Return when each period began from that of the first moment to that of the last one."""
    start = int(period.start(first))
    return range(start, int(last) + 1, period.length)


def write_report(data: ReportData) -> str:
    """Return the page."""
    style = pkgutil.get_data(__package__, "report.css")
    if style is None:
        raise FileNotFoundError("report.css is missing from the package; install it again")
    first, last = (when_text(moment) for moment in data.span)
    chosen = f"; {escape(data.chosen)}" if data.chosen else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Executions of Claude agents, {first[:10]} to {last[:10]}</title>
<style>
{style.decode("utf-8")}</style>
</head>
<body>
<header>
<h1>Executions of Claude agents</h1>
<p>{first} to {last}, all times in UTC{chosen}</p>
</header>
<main>
{_tiles(data.total)}
<div class="charts">
{_charts(data)}
</div>
<section><h2 id="agents">Agents</h2>
{_table("agents", "Agent", data.agents)}
</section>
<section><h2 id="models">Models</h2>
{_table("models", "Model", data.models)}
</section>
<section><details><summary id="figures">The figures of the charts</summary>
{_table("figures", f"{data.period.capitalize()} from", _named(data, _WHOLE[data.period]))}
</details></section>
</main>
<footer><p>Made by claude-force on {when_text(data.made)} UTC. Times are medians; a call is an execution that the API
answered. What is spent includes answers paid for in the background. Answers of unknown price are counted, not
guessed. Prompt caching is the API's own. What it saved is taken off what is spent already; below zero, more was written
there than read.</p></footer>
</body>
</html>
"""


def _tiles(total: Figures) -> str:
    tiles = [
        (
            "Executions",
            f"{total.executions:,}",
            f"failed:\u00a0{total.failures:,}, cancelled:\u00a0{total.cancelled:,}",
        ),
        ("Hit rate", percent_text(total.hit_rate), f"hits:\u00a0{total.hits:,}, misses:\u00a0{total.misses:,}"),
        ("Spent", money_text(total.spent), _unknown(total.unknown_spent)),
        ("Saved", money_text(total.saved), _unknown(total.unknown_saved) + _by_prompt_caching(total)),
        ("Time of a hit", time_text(total.hit_seconds), _late(total.hit_seconds_p95)),
        ("Time of a call", time_text(total.call_seconds), _late(total.call_seconds_p95)),
    ]
    return f"""<dl class="tiles">{
        "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in tiles)
    }</dl>"""


def _unknown(count: int) -> str:
    return f"and {count:,} of unknown price" if count else "all prices known"


def _by_prompt_caching(total: Figures) -> str:
    return (
        f"; prompt caching:\u00a0{money_text(total.prompt_cache_saved)}\u00a0besides"
        if total.prompt_cache_saved
        else ""
    )


def _late(seconds: Optional[float]) -> str:
    # With blanks at which no line breaks.
    return "" if seconds is None else "95\u00a0% took at most " + time_text(seconds).replace(" ", "\u00a0")


def _charts(data: ReportData) -> str:
    names = [name for name, _ in _named(data, _PATTERNS[data.period])]
    found = [figures for _, figures in data.periods]
    total, each = data.total, f"for each {data.period}"
    executions = [
        Series("hits", "hits", [group.hits for group in found]),
        Series("misses", "misses", [group.misses for group in found]),
        Series("past the cache", "bypasses", [group.bypasses for group in found]),
        Series("failed or cancelled", "failures", [group.failures + group.cancelled for group in found]),
    ]
    rate = [Series("hit rate", "hits", [group.hit_rate for group in found])]
    money = [
        Series("spent", "misses", [group.spent for group in found]),
        Series("saved", "hits", [group.saved for group in found]),
    ]
    if total.prompt_cache_saved:
        money.append(Series("saved by prompt caching", "bypasses", [group.prompt_cache_saved for group in found]))
    latency = [
        Series("call", "misses", [group.call_seconds for group in found]),
        Series("hit", "hits", [group.hit_seconds for group in found]),
    ]
    counted = f"Executions {each}: {total.executions:,} in all, {total.hits:,} of them hits."
    rated = f"The share of hits in what was looked up {each}: {percent_text(total.hit_rate)} in all."
    paid = f"USD {each}: {money_text(total.spent)} spent and {money_text(total.saved)} saved in all"
    paid += f"{_by_prompt_caching(total)}."
    timed = (
        f"The median time {each}, on a logarithmic scale: {time_text(total.hit_seconds)} for a hit and "
        f"{time_text(total.call_seconds)} for a call in all."
    )
    return "\n".join(
        [
            bars(Chart("executions", "Executions", counted, names, executions, lambda n: f"{n:,.0f}"), stacked=True),
            lines(Chart("rate", "Hit rate", rated, names, rate, lambda share: f"{100 * share:.0f} %"), top=1.0),
            bars(Chart("money", "Money", paid, names, money, money_text), stacked=False),
            lines(Chart("time", "Time", timed, names, latency, time_text), logarithmic=True),
        ]
    )


def _named(data: ReportData, pattern: str) -> List[Tuple[str, Figures]]:
    return [(when_text(start, pattern), figures) for start, figures in data.periods]


def _table(label: str, first: str, groups: Iterable[Tuple[Any, Figures]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in (first, *_COLUMNS))
    rows = ((escape(key or "(none)"), "".join(f"<td>{cell}</td>" for cell in _cells(group))) for key, group in groups)
    body = "\n".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows)
    # It scrolls where it is too wide, so that the keyboard has to reach it.
    return f"""<div class="table" role="region" aria-labelledby="{label}" tabindex="0"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _cells(group: Figures) -> Sequence[str]:
    return (
        f"{group.executions:,}",
        f"{group.hits:,}",
        percent_text(group.hit_rate),
        f"{group.failures:,}",
        money_text(group.spent, group.unknown_spent),
        money_text(group.saved, group.unknown_saved),
        money_text(group.prompt_cache_saved),
        time_text(group.hit_seconds),
        time_text(group.call_seconds),
    )
