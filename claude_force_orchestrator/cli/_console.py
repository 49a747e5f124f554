"""Where tables, notes and progress go: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator, Optional, Sequence

from ._failure import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["console", "duration_text", "note", "print_json", "print_table", "progress", "quiet_log", "size_text"]

_PIPED_WIDTH = 200
"""Columns for output that is not a terminal; rich's default of 80 would cut names and keys short."""


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is, as wide as its terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, width=None if stream.isatty() else _PIPED_WIDTH, markup=False, highlight=False, emoji=False
    )


def note(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(one_line(text) + "\n")


def print_json(value: object) -> None:
    """Write ``value`` to standard output as indented JSON."""
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", numeric: Sequence[str] = ()
) -> None:
    """Write a table to standard output.

    :param numeric: the columns to align to the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(one_line(line) for line in cell.splitlines())) for cell in row))
    console().print(table)


def progress() -> Progress:
    """Return a live progress bar on standard error; where that is no terminal it shows nothing.

    Its drawing is done by a thread of rich's own.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen,
        disable=not screen.is_terminal,
    )


def size_text(size: int) -> str:
    """Return a number of bytes for people, in powers of ten."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def duration_text(seconds: Optional[float], *, none: str = "for ever") -> str:
    """Return a number of seconds for people, or ``none`` for None."""
    if seconds is None:
        return none
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep back the cache's warnings while a command does what raises the same as an error."""
    import logging  # late, like all that --help can do without

    logger = logging.getLogger("claude_force_cache")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
