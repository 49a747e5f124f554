"""Measuring: contenders take turns, every operation is timed, and figures come with what they are compared to."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Sequence

from .placement import ANY, Placement
from .targets import Target

__all__ = ["TIMES", "Column", "Contender", "Section", "Series", "compare", "interleave", "percentile"]

Operation = Callable[[int], Awaitable[object]]


class Contender(NamedTuple):
    """Something that is measured.

    :param name: what the table calls it.
    :param run: one operation; it is given the operation's number, from 0.
    :param after: awaited after each turn, untimed: lets threads finish what the turn left to them, so that it is
        not paid by whoever comes next.
    :param most: the most operations in a turn, for one so slow that it would take all the time.
    """

    name: str
    run: Operation
    after: Optional[Callable[[], Awaitable[object]]] = None
    most: Optional[int] = None


class Series:
    """The timings of one contender, in seconds, by rounds."""

    def __init__(self) -> None:
        self.rounds: List[List[float]] = []

    @property
    def median(self) -> float:
        """The median over rounds of each round's median."""
        return statistics.median([statistics.median(timings) for timings in self.rounds])

    @property
    def mean(self) -> float:
        """The mean over all operations of all rounds: what one costs, the rare ones that do work for many included."""
        return statistics.fmean([timing for timings in self.rounds for timing in timings])

    @property
    def p99(self) -> float:
        """The 99th percentile over all operations of all rounds."""
        return percentile([timing for timings in self.rounds for timing in timings], 0.99)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share * 1000) // 1000) - 1)]


async def interleave(
    contenders: Sequence[Contender], *, rounds: int, operations: int, placement: Placement = ANY
) -> Dict[str, Series]:
    """Return the timings of ``rounds`` turns of ``operations`` operations for each contender.

    The turns go A B C, A B C, so that a slow minute of the machine is everybody's. A first round is not counted. The
    garbage collector runs as it does in any program, but does not look through what was there before: with so many
    libraries that would be most of what it does. Each round begins with a collection, and with all threads in the place
    where ``placement`` has them.
    """
    gc.collect()
    gc.freeze()
    try:
        return await _interleave(contenders, rounds, operations, placement)
    finally:
        gc.unfreeze()


async def _interleave(
    contenders: Sequence[Contender], rounds: int, operations: int, placement: Placement
) -> Dict[str, Series]:
    series = {contender.name: Series() for contender in contenders}
    clock = time.perf_counter
    for number in range(rounds + 1):
        gc.collect()
        placement.settle()
        for contender in contenders:
            run = contender.run
            first = number * operations
            timings = []
            for index in range(first, first + min(operations, contender.most or operations)):
                begin = clock()
                await run(index)
                timings.append(clock() - begin)
            if contender.after is not None:
                await contender.after()
            if number:
                series[contender.name].rounds.append(timings)
    return series


class Column(NamedTuple):
    """A column of a section's table: the key of the rows' figures, the heading, and the decimal places."""

    key: str
    heading: str
    digits: int = 1


TIMES = (
    Column("median_us", "median us", 2),
    Column("p99_us", "p99 us", 2),
    Column("mean_us", "mean us", 2),
    Column("ratio", "ratio", 2),
)


@dataclass
class Section:
    """What one case found.

    :param about: what was done, in words.
    :param label: the heading of the rows' names.
    :param rows: figures by the columns' keys, and ``name``.
    :param missing: what was not measured, and why.
    :param plots: the names of files beside the report, with their captions.
    """

    about: str
    label: str = "what"
    columns: Sequence[Column] = TIMES
    rows: List[Dict[str, Any]] = field(default_factory=list)
    targets: List[Target] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    plots: Dict[str, str] = field(default_factory=dict)


def compare(series: Dict[str, Series], *, to: str) -> List[Dict[str, Any]]:
    """Return a row of :data:`TIMES` for each contender; the ratio is that of the medians, to the one named ``to``."""
    return [
        {
            "name": name,
            "median_us": timings.median * 1e6,
            "p99_us": timings.p99 * 1e6,
            "mean_us": timings.mean * 1e6,
            "ratio": timings.median / series[to].median,
        }
        for name, timings in series.items()
    ]
