"""Executions as CSV, as a JSON list, and as lines of JSON."""

from __future__ import annotations

import csv
import json
from typing import Any, Callable, Dict, Iterable, Mapping, TextIO

from .._executions import COLUMNS
from ._failure import one_line
from ._moments import when_text

__all__ = ["FORMATS"]

_Row = Dict[str, Any]

_FORMULA = ("=", "+", "-", "@")


def _readable(row: _Row) -> _Row:
    return {**row, "ended": when_text(row["ended"], "%Y-%m-%dT%H:%M:%S.%fZ")}


def _safe(value: object) -> object:
    """Return a cell on one line that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    line = one_line(value)
    return f"'{line}" if line.startswith(_FORMULA) else line


def _write_csv(rows: Iterable[_Row], stream: TextIO) -> int:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for count, row in enumerate(map(_readable, rows), 1):  # noqa: B007 - the last one is how many there were
        writer.writerow([_safe(row[name]) for name in COLUMNS])
    return count


def _write_json(rows: Iterable[_Row], stream: TextIO) -> int:
    count = 0
    for count, row in enumerate(map(_readable, rows), 1):
        stream.write(("[\n" if count == 1 else ",\n") + json.dumps(row))
    stream.write("\n]\n" if count else "[]\n")
    return count


def _write_lines(rows: Iterable[_Row], stream: TextIO) -> int:
    count = 0
    for count, row in enumerate(map(_readable, rows), 1):  # noqa: B007 - likewise
        stream.write(json.dumps(row) + "\n")
    return count


FORMATS: Mapping[str, Callable[[Iterable[_Row], TextIO], int]] = {
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_lines,
}
"""What writes rows in each format, and returns how many there were."""
