"""Trees of workflows: how the steps stand to each other, and how it stands with each of them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ._console import console, duration_text, note
from ._execution import usd
from ._failure import one_line

if TYPE_CHECKING:
    from rich.console import Group, OverflowMethod

    from .._workflow import Step, Workflow
    from .._workflow_run import StepResult

__all__ = ["Row", "draw", "live_tree", "rows_of"]

_STYLES = {
    "done": "green",
    "cached": "cyan",
    "failed": "bold red",
    "skipped": "dim",
    "running": "yellow",
    "waiting": "dim",
    "cancelled": "red",
}
_LINES = ("├─ ", "└─ ", "│  ", "   ")
_ASCII_LINES = ("|- ", "`- ", "|  ", "   ")
_REDRAWN = 8
_SHOWN_OF_TASK = 200


class Row(NamedTuple):
    """A line of a tree: the step, and for each level above it whether that one goes on below."""

    step: Step
    goes_on: Tuple[bool, ...]

    def branch(self, *, unicode: bool = True) -> str:
        """Return the lines of the tree before the step's name."""
        tee, end, bar, blank = _LINES if unicode else _ASCII_LINES
        above = "".join(bar if goes_on else blank for goes_on in self.goes_on[:-1])
        return above + (tee if self.goes_on[-1] else end)


def rows_of(workflow: Workflow) -> List[Row]:
    """Return the steps as a tree, in the order that it is read in.

    Steps that run side by side stand below the one that all of them wait for. A step that only one waits for, and a
    step that several join in, stand on the level of what they go on from.
    """
    parents = _parents(workflow.steps)
    children: Dict[Optional[str], List[Step]] = {}
    for step in workflow.steps:
        children.setdefault(parents[step.id], []).append(step)
    rows: List[Row] = []
    left: List[Row] = []

    def stack(parent: Optional[str], above: Tuple[bool, ...]) -> None:
        below = children.get(parent, [])
        left.extend(Row(step, (*above, step is not below[-1])) for step in reversed(below))

    stack(None, ())
    while left:
        row = left.pop()
        rows.append(row)
        stack(row.step.id, row.goes_on)
    return rows


def _parents(steps: Tuple[Step, ...]) -> Dict[str, Optional[str]]:
    followers: Dict[str, int] = {}
    for step in steps:
        for need in step.needs:
            followers[need] = followers.get(need, 0) + 1
    # Those that a step cannot come about without, itself included: all paths from the start lead through them.
    before: Dict[str, FrozenSet[str]] = {}
    parents: Dict[str, Optional[str]] = {}
    for step in steps:
        common = frozenset.intersection(*(before[need] for need in step.needs)) if step.needs else frozenset()
        before[step.id] = common | {step.id}
        if len(step.needs) == 1 and followers[step.needs[0]] > 1:
            parents[step.id] = step.needs[0]
        else:
            nearest = max(common, key=lambda name: len(before[name]), default=None)
            parents[step.id] = None if nearest is None else parents[nearest]
    return parents


def draw(title: str, rows: List[Row], cells: Mapping[str, Tuple[str, ...]], *, live: bool = False) -> Group:
    """Return a title and a table whose first column is the tree.

    :param cells: the other columns of each step.
    :param live: whether the first of them is its state, and the table is for standard error.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    unicode = (console(stderr=live).encoding or "").lower().startswith("utf")
    cut: OverflowMethod = "ellipsis" if unicode else "crop"
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=max(map(len, _STYLES)) if live else None)
    # Where the terminal is narrow, this column gives way.
    table.add_column(no_wrap=False)
    table.add_column(no_wrap=live)
    for row in rows:
        first, *rest = cells[row.step.id]
        branch = Text.assemble((row.branch(unicode=unicode), "dim"), row.step.id)
        details = [Text(one_line(cell), no_wrap=live, overflow=cut if live else "fold") for cell in rest]
        table.add_row(branch, Text(first, style=_STYLES[first] if live else ""), *details)
    return Group(Text(one_line(title), style="bold", overflow=cut, no_wrap=True), table)


class _Progress:
    """How it stands with the steps of a run."""

    def __init__(self, workflow: Workflow, task: str, *, drawn: bool) -> None:
        self._title = f"{workflow.name}: {' '.join(task[:_SHOWN_OF_TASK].split())}"
        self._rows = rows_of(workflow)
        self._drawn = drawn
        self._results: Dict[str, StepResult] = {}
        self._began: Dict[str, float] = {}
        self._cancelled = False

    def update(self, result: StepResult) -> None:
        """Take in how it stands with a step; where there is no terminal, say how it ended."""
        if result.state == "running":
            self._began[result.id] = time.monotonic()
        elif not self._drawn:
            state, *rest = _cells(result)
            note(f"{result.id}: {', '.join([state, *(cell for cell in rest if cell)])}")
        self._results = {**self._results, result.id: result}

    def cancel(self) -> None:
        """Show as cancelled what is under way."""
        self._cancelled = True

    def __rich__(self) -> Group:
        # Called by the thread that draws: what it reads is replaced, never changed.
        results = self._results
        cells: Dict[str, Tuple[str, ...]] = {}
        for row in self._rows:
            result = results.get(row.step.id)
            if result is not None and result.state != "running":
                cells[row.step.id] = _cells(result)
            elif self._cancelled:
                cells[row.step.id] = ("cancelled" if result is not None else "waiting", "", "")
            elif result is not None:
                elapsed = time.monotonic() - self._began[row.step.id]
                cells[row.step.id] = ("running", f"{elapsed:.0f} s", "")
            else:
                missing = [need for need in row.step.needs if need not in results or results[need].state == "running"]
                cells[row.step.id] = ("waiting", f"for {', '.join(missing)}" if missing else "", "")
        return draw(self._title, self._rows, cells, live=True)


def _cells(result: StepResult) -> Tuple[str, ...]:
    if result.result is None:
        return result.state, result.reason, ""
    metadata = result.result.metadata
    if result.state == "failed":
        return result.state, " ".join(result.result.errors), ""
    about = [f"suspicious: {', '.join(metadata.suspicions)}"] if metadata.suspicions else []
    if result.state == "cached":
        age = metadata.cache_age_seconds
        about.append("from a call under way" if age is None else f"{duration_text(age)} old")
        about.extend(["past its freshness"] if metadata.stale else [])
        return result.state, ", ".join(about), f"{usd(metadata.saved_cost)} saved"
    about.extend(["cut short"] if metadata.truncated else [])
    about.append(f"{metadata.execution_time_ms / 1000:.1f} s")
    about.append(f"{metadata.input_tokens:,} + {metadata.output_tokens:,} tokens")
    return result.state, ", ".join(about), usd(metadata.estimated_cost)


@contextmanager
def live_tree(workflow: Workflow, task: str) -> Iterator[_Progress]:
    """Show a run on standard error while it lasts, as a tree that is drawn again, or as lines if it is no terminal."""
    screen = console(stderr=True)
    drawn = screen.is_terminal and not screen.is_dumb_terminal
    progress = _Progress(workflow, task, drawn=drawn)
    if not drawn:
        yield progress
        return
    from rich.live import Live

    with Live(progress, console=screen, refresh_per_second=_REDRAWN):
        try:
            yield progress
        except BaseException:
            progress.cancel()
            raise
