"""Charts over time as inline SVG, which need neither scripts nor a network.

The drawing is stretched to the width that there is; text stands beside it as HTML, so that it keeps its size.
"""

from __future__ import annotations

import math
from html import escape
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

__all__ = ["Chart", "Series", "bars", "lines", "nice_steps"]

_WIDTH, _HEIGHT = 1000.0, 100.0
_GAP = 0.16
"""The part of a period's width that is left free between bars."""

_WIDEST = _WIDTH / 12
"""The widest bars, or groups of them: one alone should not fill the chart."""

_MOST_LABELS = 4


class Series(NamedTuple):
    """What one color of a chart shows.

    :param name: what it is called in the legend.
    :param color: the class that the style sheet has a color for.
    :param values: one for each period, None where there is nothing to show.
    """

    name: str
    color: str
    values: Sequence[Optional[float]]


class Chart(NamedTuple):
    """What all charts of a page have to say.

    :param id: its id in the page.
    :param title: its heading.
    :param summary: what it shows, in a sentence, for those who do not see it.
    :param periods: the name of each period.
    :param series: what is drawn, the first one lowest or in front.
    :param text: how a value is written.
    """

    id: str
    title: str
    summary: str
    periods: Sequence[str]
    series: Sequence[Series]
    text: Callable[[float], str]


def bars(chart: Chart, *, stacked: bool) -> str:
    """Return a chart with a bar for each value, one upon the other, if they are counts, or side by side."""
    count = len(chart.periods)
    columns = [[series.values[index] or 0.0 for series in chart.series] for index in range(count)]
    most = max((sum(column) if stacked else max(column) for column in columns), default=0.0)
    steps = nice_steps(most, least=1.0 if stacked else 0.0)
    width, top = _WIDTH / count, steps[-1]
    room = min((1 - _GAP) * width, _WIDEST)
    drawn: List[str] = []
    for number, series in enumerate(chart.series):
        path: List[str] = []
        for index, column in enumerate(columns):
            left, wide, base = (index + 0.5) * width - room / 2, room, 0.0
            if stacked:
                base = sum(column[:number])
            else:
                wide /= len(chart.series)
                left += number * wide
            if column[number] > 0:
                low, high = (_HEIGHT * (1 - value / top) for value in (base, base + column[number]))
                path.append(f"M{left:.2f} {low:.2f}V{high:.2f}h{wide:.2f}V{low:.2f}z")
        if path:
            drawn.append(f'<path class="bar {series.color}" d="{"".join(path)}"/>')
    return _figure(chart, drawn, [(step / top, chart.text(step)) for step in steps])


def lines(chart: Chart, *, top: Optional[float] = None, logarithmic: bool = False) -> str:
    """Return a chart with a line for each series, which is interrupted where there is nothing to show.

    :param top: the end of the scale, by default what the values need.
    :param logarithmic: whether each step of the scale is ten times the last. Values are above 0 then.
    """
    values = [value for series in chart.series for value in series.values if value is not None]
    if logarithmic:
        values = [value for value in values if value > 0] or [1.0]
        least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        most = max(most, least + 1)
        steps = [10.0**power for power in range(least, most + 1)]

        def height(value: float) -> float:
            return (math.log10(max(value, steps[0])) - least) / (most - least)

    else:
        steps = nice_steps(max(values, default=0.0) if top is None else top)

        def height(value: float) -> float:
            return value / steps[-1]

    drawn = []
    for series in chart.series:
        for kind, parts in zip(("line", "dot"), _paths(series.values, height)):
            if parts:
                drawn.append(f'<path class="{kind} {series.color}" d="{parts}"/>')
    return _figure(chart, drawn, [(height(step), chart.text(step)) for step in steps])


def nice_steps(most: float, *, least: float = 0.0) -> List[float]:
    """Return a scale from 0 to ``most`` or a little above, in five steps at most that are easy to read.

    :param least: the least length of a step.
    """
    if not 0 < most < math.inf:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most))

    def count(step: float) -> int:
        return max(1, math.ceil(round(most / step, 6)))  # what is above by no more than a rounding needs no step more

    step = max(least, next(power * factor for factor in (0.2, 0.5, 1.0, 2.0) if count(power * factor) <= 5))
    return [step * number for number in range(count(step) + 1)]


def _paths(values: Sequence[Optional[float]], height: Callable[[float], float]) -> Tuple[str, str]:
    """Return the path through values that have neighbours, and that of the dots for those that have none."""
    line: List[str] = []
    dots: List[str] = []
    for index, value in enumerate(values):
        if value is None:
            continue
        before = index > 0 and values[index - 1] is not None
        after = index + 1 < len(values) and values[index + 1] is not None
        x, y = (index + 0.5) * _WIDTH / len(values), _HEIGHT * (1 - height(value))
        if before or after:
            line.append(f"{'L' if before else 'M'}{x:.2f} {y:.2f}")
        else:
            dots.append(f"M{x:.2f} {y:.2f}h0")  # a line of no length, which its round ends make a dot
    return "".join(line), "".join(dots)


def _figure(chart: Chart, drawn: Sequence[str], ticks: Sequence[Tuple[float, str]]) -> str:
    grid = "".join(f"M0 {_HEIGHT * (1 - share):.2f}h{_WIDTH:g}" for share, _ in ticks)
    scale = "".join(f'<span style="bottom:{100 * share:.2f}%">{escape(text)}</span>' for share, text in ticks)
    legend = "".join(f'<li><i class="{series.color}"></i>{escape(series.name)}</li>' for series in chart.series)
    return f"""<figure aria-labelledby="{chart.id}">
<figcaption><h2 id="{chart.id}">{escape(chart.title)}</h2><ul class="legend">{legend}</ul></figcaption>
<div class="plot">
<div class="scale" aria-hidden="true">{scale}</div>
<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" aria-label="{escape(chart.summary)}">
<path class="grid" d="{grid}"/>
{"".join(drawn)}
{_hints(chart)}
</svg>
<div class="periods" aria-hidden="true">{_labels(chart.periods)}</div>
</div>
</figure>"""


def _hints(chart: Chart) -> str:
    """Return what the mouse finds: a strip for each period that shows its values."""
    width = _WIDTH / len(chart.periods)
    strips = []
    for index, period in enumerate(chart.periods):
        shown = [(series.name, series.values[index]) for series in chart.series]
        text = "".join(f"\n{name}: {chart.text(value)}" for name, value in shown if value is not None)
        strips.append(
            f'<rect class="strip" x="{index * width:.2f}" width="{width:.2f}" height="{_HEIGHT:g}">'
            f"<title>{escape(period + text)}</title></rect>"
        )
    return "".join(strips)


def _labels(periods: Sequence[str]) -> str:
    step = max(1, math.ceil(len(periods) / _MOST_LABELS))
    labels = []
    for number, index in enumerate(range(0, len(periods), step)):
        place = 100 * (index + 0.5) / len(periods)
        # The last one must not stick out, which would make a narrow page wider than its screen.
        style = f"left:{place:.2f}%" if place < 90 else "right:0;transform:none"
        spare = " class=spare" if number % 2 else ""
        labels.append(f'<span style="{style}"{spare}>{escape(periods[index])}</span>')
    return "".join(labels)
