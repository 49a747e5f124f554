"""Old records: executions as lines of JSON, which claude-force and early versions of this package wrote."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Tuple
from typing import Counter as CounterType

from ._executions import Executions
from ._prices import PriceList
from ._tracking import ExecutionRecord, Outcome
from ._validation import is_agent_name

__all__ = ["Imported", "import_lines"]

_BATCH = 1_000
_LONGEST_LINE = 65_536
_MOST_FAULTS = 1_000


@dataclass
class Imported:
    """What became of the lines of a file.

    :param added: lines that are recorded now.
    :param known: lines that had been imported before.
    :param too_old: lines that are older than records may become.
    :param malformed: lines that are no records.
    :param faults: the number, from 1, of each of the first 1,000 of these, and what is wrong with it.
    """

    added: int = 0
    known: int = 0
    too_old: int = 0
    malformed: int = 0
    faults: List[Tuple[int, str]] = field(default_factory=list)


def import_lines(path: Path, executions: Executions, prices: PriceList, *, since: float) -> Imported:
    """Record the executions that the lines of a file tell of, but none twice, and return what became of them. Blocks.

    A line is known again by what it says, and by how many lines before it say the same. Lines that are no records are
    left out. What has been imported stays if the file cannot be read to its end.

    :param since: older ones are left out; in seconds since 1970.
    :raises OSError: if the file cannot be read, or the record not be written.
    :raises sqlite3.Error: if the record cannot be written.
    :raises ConfigError: if the record is of another program or version.
    """
    result = Imported()
    seen: CounterType[bytes] = Counter()
    batch: List[Tuple[bytes, ExecutionRecord]] = []

    def store() -> None:
        added = executions.add_imported(batch)
        result.added += added
        result.known += len(batch) - added
        batch.clear()

    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                record = _parse(line, prices)
            except ValueError as error:
                result.malformed += 1
                if result.malformed <= _MOST_FAULTS:
                    result.faults.append((number, str(error)))
                continue
            if record.ended <= since:
                result.too_old += 1
                continue
            digest = hashlib.sha256((line or b"").strip()).digest()[:16]
            seen[digest] += 1
            batch.append((digest + seen[digest].to_bytes(4, "big"), record))
            if len(batch) >= _BATCH:
                store()
        if batch:
            store()
    return result


def _lines(file: BinaryIO) -> Iterator[Optional[bytes]]:
    """Yield the lines of a file; None for one that is too long to be a record."""
    while True:
        line = file.readline(_LONGEST_LINE)
        if not line:
            return
        whole = line.endswith(b"\n") or len(line) < _LONGEST_LINE
        yield line if whole else None
        while not whole:
            rest = file.readline(_LONGEST_LINE)
            whole = rest.endswith(b"\n") or len(rest) < _LONGEST_LINE


def _parse(line: Optional[bytes], prices: PriceList) -> ExecutionRecord:
    """Return the record that a line holds.

    :raises ValueError: if it holds none. The message quotes nothing of the line.
    """
    if line is None:
        raise ValueError(f"longer than {_LONGEST_LINE:,} bytes")
    try:
        table = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    if not isinstance(table, dict):
        raise ValueError("no JSON object")
    success, model = table.get("success"), table.get("model")
    if not isinstance(success, bool):
        raise ValueError("success is neither true nor false")
    if not isinstance(model, str):
        raise ValueError("model is no text")
    ended = _moment(table.get("timestamp"))
    milliseconds = _number(table, "execution_time_ms")
    if milliseconds is None:
        raise ValueError("execution_time_ms is missing")
    given, written = _count(table, "input_tokens"), _count(table, "output_tokens")
    error, cached, agent = table.get("error_type"), table.get("cached"), table.get("agent_name")
    cost, saved = _number(table, "estimated_cost"), _number(table, "saved_cost")
    outcome: Outcome = "failure"
    if success:
        # Claude-force did not say whether its own cache answered; that counts neither for this one nor against it.
        outcome = "bypass" if cached is None else "hit" if cached is True else "miss"
    elif error == "CancelledError":
        outcome = "cancelled"
    if "saved_cost" not in table:
        # What claude-force took for the cost was too little by orders of magnitude.
        cost, saved = _cost(prices, model, given, written, ended), 0.0
    return ExecutionRecord(
        ended,
        agent if isinstance(agent, str) and is_agent_name(agent) else None,
        model,
        outcome,
        milliseconds / 1000,
        error if isinstance(error, str) else None,
        given,
        written,
        cost=cost,
        saved=saved,
        prompt_cache_saved=0.0,
        workflow=_text(table, "workflow_name"),
        position=_count(table, "workflow_position"),
    )


def _cost(prices: PriceList, model: str, given: Optional[int], written: Optional[int], ended: float) -> Optional[float]:
    if given == 0 and written == 0:
        return 0.0
    if given is None or written is None:
        return None
    price = prices.price(model, prompt_tokens=given, at=ended)
    return None if price is None else (given * price.input + written * price.output) / 1_000_000


def _moment(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("timestamp is no text")
    try:
        # Before Python 3.11 Z is not understood. Without a zone it is local time, as claude-force wrote it.
        return datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError("timestamp is no date and time") from None


def _number(table: Dict[str, Any], name: str) -> Optional[float]:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is no number of 0 or more")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large") from None


def _count(table: Dict[str, Any], name: str) -> Optional[int]:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is no whole number of 0 or more")
    return value


def _text(table: Dict[str, Any], name: str) -> Optional[str]:
    value = table.get(name)
    return value if isinstance(value, str) else None
