"""Metrics: what records add up to, by group, and old records among them."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_force_orchestrator import ExecutionRecord, PriceList
from claude_force_orchestrator._executions import Executions
from claude_force_orchestrator._metrics import PERIODS, Figures, Selection, figures, select, span
from claude_force_orchestrator._old_records import Imported, import_lines

OUTCOMES = ["hit", "miss", "bypass", "failure", "cancelled", "background"]


def _record(**fields: Any) -> ExecutionRecord:
    given: Dict[str, Any] = {"ended": 1.8e9, "agent": "a", "model": "m", "outcome": "miss", "latency": 0.5}
    return ExecutionRecord(**{**given, "cost": 0.0, "saved": 0.0, **fields})


def _kept(path: Path, records: Sequence[ExecutionRecord]) -> Executions:
    executions = Executions(path)
    executions.add(records)
    return executions


amounts = st.one_of(st.none(), st.integers(0, 1000).map(lambda cents: cents / 8))
records = st.builds(
    _record,
    ended=st.integers(1_000_000, 3_000_000).map(float),
    agent=st.sampled_from(["a", "b", None]),
    model=st.sampled_from(["m", "n"]),
    outcome=st.sampled_from(OUTCOMES),
    latency=st.integers(0, 50).map(lambda eighths: eighths / 8),
    input_tokens=st.one_of(st.none(), st.integers(0, 10**9)),
    cost=amounts,
    saved=amounts,
)


def _expected(found: List[ExecutionRecord]) -> Figures:
    def count(outcome: str) -> int:
        return sum(record.outcome == outcome for record in found)

    def times(*outcomes: str) -> List[float]:
        return sorted(record.latency for record in found if record.outcome in outcomes)

    def share(sorted_times: List[float], percent: int) -> Optional[float]:
        # The least time that so many of a hundred do not exceed.
        reached = (time for n, time in enumerate(sorted_times, 1) if 100 * n >= percent * len(sorted_times))
        return next(reached, None)

    hits, calls = times("hit"), times("miss", "bypass")
    return Figures(
        executions=len(found) - count("background"),
        hits=count("hit"),
        misses=count("miss"),
        bypasses=count("bypass"),
        failures=count("failure"),
        cancelled=count("cancelled"),
        background=count("background"),
        input_tokens=sum(record.input_tokens or 0 for record in found if record.cost is None or record.cost > 0),
        spent=sum(record.cost or 0 for record in found),
        saved=sum(record.saved or 0 for record in found),
        unknown_spent=sum(record.cost is None for record in found),
        unknown_saved=sum(record.saved is None for record in found),
        hit_seconds=share(hits, 50),
        hit_seconds_p95=share(hits, 95),
        call_seconds=share(calls, 50),
        call_seconds_p95=share(calls, 95),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(records, max_size=30), moments=st.tuples(st.none() | st.just(2e6), st.none() | st.just(2.5e6)))
def test_figures_are_what_one_would_count(tmp_path_factory: Any, found: List[ExecutionRecord], moments: Any) -> None:
    since, until = moments
    with closing(_kept(tmp_path_factory.mktemp("kept") / "executions.db", found)) as executions:
        chosen = [
            record
            for record in found
            if (since is None or record.ended >= since) and (until is None or record.ended < until)
        ]
        selection = Selection(since, until)
        assert figures(executions, selection) == [(None, _expected(chosen))]
        for by, key in (
            ("agent", lambda record: record.agent),
            ("model", lambda record: record.model),
            ("period", lambda record: PERIODS["week"].start(record.ended)),
        ):
            groups: Dict[Any, List[ExecutionRecord]] = {}
            for record in chosen:
                groups.setdefault(key(record), []).append(record)
            assert dict(figures(executions, selection, by, period=PERIODS["week"])) == {
                group: _expected(members) for group, members in groups.items()
            }
        ends = sorted(record.ended for record in chosen)
        assert span(executions, selection) == ((ends[0], ends[-1]) if ends else None)
        assert [row["ended"] for row in select(executions, selection)] == ends


def test_weeks_begin_on_mondays_and_days_at_midnight_in_utc() -> None:
    moment = datetime(2026, 11, 26, 13, 45, tzinfo=timezone.utc).timestamp()
    starts = {
        name: datetime.fromtimestamp(period.start(moment), timezone.utc).isoformat() for name, period in PERIODS.items()
    }
    assert starts == {
        "hour": "2026-11-26T13:00:00+00:00",
        "day": "2026-11-26T00:00:00+00:00",
        "week": "2026-11-23T00:00:00+00:00",
    }


def test_executions_of_one_agent_or_model_can_be_chosen(tmp_path: Path) -> None:
    found = [_record(agent="a"), _record(agent="b"), _record(agent="b", model="n")]
    with closing(_kept(tmp_path / "executions.db", found)) as executions:
        for selection, count in (
            (Selection(agent="b"), 2),
            (Selection(agent="b", model="n"), 1),
            (Selection(model="' OR 1 --"), 0),
        ):
            assert figures(executions, selection)[0][1].executions == count
            assert len(list(select(executions, selection))) == count


def test_without_a_file_there_is_nothing_and_none_is_made(tmp_path: Path) -> None:
    executions = Executions(tmp_path / "executions.db")
    assert figures(executions, Selection()) == [(None, Figures())]
    assert figures(executions, Selection(), "agent") == []
    assert (span(executions, Selection()), list(select(executions, Selection()))) == (None, [])
    assert Figures().hit_rate is None
    assert list(tmp_path.iterdir()) == []


OLD: Dict[str, Any] = {
    "timestamp": "2026-11-02T10:00:00.250000+00:00",
    "agent_name": "reviewer",
    "task_hash": "0123456789abcdef",
    "success": True,
    "execution_time_ms": 1500.0,
    "model": "claude-haiku-5-5",
    "input_tokens": 1000,
    "output_tokens": 200,
    "total_tokens": 1200,
    "estimated_cost": 0.0000002,
    "error_type": None,
    "workflow_name": None,
    "workflow_position": None,
}
OURS = {**OLD, "estimated_cost": 0.25, "cached": False, "saved_cost": 0.0}


def _import(folder: Path, *lines: Any, since: float = 0.0) -> Imported:
    path = folder / "executions.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    with closing(Executions(folder / "executions.db")) as executions:
        return import_lines(path, executions, PriceList.load(), since=since)


def _rows(folder: Path) -> List[Dict[str, Any]]:
    with closing(Executions(folder / "executions.db")) as executions:
        return list(select(executions, Selection()))


def test_lines_of_both_kinds_are_imported_and_costs_of_the_older_one_made_anew(tmp_path: Path) -> None:
    lines = [
        OLD,
        {**OLD, "model": "gone"},
        OURS,
        {**OURS, "cached": True, "estimated_cost": 0.0, "saved_cost": None},
        {**OURS, "success": False, "error_type": "RateLimitError"},
        {**OURS, "success": False, "error_type": "CancelledError", "workflow_name": "w", "workflow_position": 2},
        {**OLD, "success": False, "input_tokens": 0, "output_tokens": 0, "model": "gone"},
    ]
    assert _import(tmp_path, *lines) == Imported(added=7)
    rows = _rows(tmp_path)
    assert [row["outcome"] for row in rows] == [
        *("bypass", "bypass", "miss", "hit", "failure", "cancelled", "failure"),
    ]
    assert [row["cost"] for row in rows] == [pytest.approx(0.0002), None, 0.25, 0.0, 0.25, 0.25, 0.0]
    assert [row["saved"] for row in rows] == [0.0, 0.0, 0.0, None, 0.0, 0.0, 0.0]
    first = rows[0]
    assert first["ended"] == datetime(2026, 11, 2, 10, 0, 0, 250_000, tzinfo=timezone.utc).timestamp()
    assert (first["agent"], first["latency"], first["cache_read_tokens"]) == ("reviewer", 1.5, None)
    assert (rows[5]["workflow"], rows[5]["position"]) == ("w", 2)


def test_a_file_that_is_imported_twice_adds_nothing_and_one_that_has_grown_what_is_new(tmp_path: Path) -> None:
    twins = [OLD, OURS, OLD]
    assert _import(tmp_path, *twins) == Imported(added=3)
    assert _import(tmp_path, *twins) == Imported(known=3)
    assert _import(tmp_path, *twins, OLD, {**OURS, "agent_name": "writer"}) == Imported(added=2, known=3)
    assert len(_rows(tmp_path)) == 5


MALFORMED = {
    b"{": "no JSON",
    b"[" * 60_000: "no JSON",
    b"\xff\xfe": "no JSON",
    b"[]": "no JSON object",
    json.dumps({**OLD, "success": "yes"}).encode(): "success",
    json.dumps({**OLD, "model": None}).encode(): "model",
    json.dumps({**OLD, "timestamp": 7}).encode(): "timestamp is no text",
    json.dumps({**OLD, "timestamp": "yesterday"}).encode(): "timestamp is no date",
    json.dumps({**OLD, "timestamp": "0001-01-01T00:00:00"}).encode(): "timestamp is no date",
    json.dumps({**OLD, "execution_time_ms": None}).encode(): "execution_time_ms",
    json.dumps({**OLD, "execution_time_ms": float("nan")}).encode(): "execution_time_ms",
    json.dumps({**OLD, "input_tokens": -1}).encode(): "input_tokens",
    json.dumps({**OLD, "output_tokens": True}).encode(): "output_tokens",
    json.dumps({**OURS, "saved_cost": "1"}).encode(): "saved_cost",
    json.dumps({**OURS, "saved_cost": 10**400}).encode(): "saved_cost",
    json.dumps({**OLD, "agent_name": "x" * 70_000}).encode(): "longer than",
}


def test_malformed_lines_are_told_by_their_number_and_the_others_imported(tmp_path: Path) -> None:
    lines: List[Any] = [OLD, b"", *MALFORMED, OURS]
    result = _import(tmp_path, *lines)
    assert (result.added, result.malformed) == (2, len(MALFORMED))
    assert [number for number, _ in result.faults] == list(range(3, 3 + len(MALFORMED)))
    for (_, fault), expected in zip(result.faults, MALFORMED.values()):
        assert expected in fault


def test_a_line_without_an_end_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "executions.jsonl"
    path.write_text(json.dumps(OLD) + "\n" + json.dumps(OURS), encoding="utf-8")
    with closing(Executions(tmp_path / "executions.db")) as executions:
        assert import_lines(path, executions, PriceList.load(), since=0.0) == Imported(added=2)


def test_a_time_without_a_zone_is_local_time_and_z_is_utc(tmp_path: Path) -> None:
    _import(tmp_path, {**OLD, "timestamp": "2026-11-02T10:00:00"}, {**OLD, "timestamp": "2026-11-02T10:00:00Z"})
    local = time.mktime((2026, 11, 2, 10, 0, 0, 0, 0, -1))
    utc = datetime(2026, 11, 2, 10, tzinfo=timezone.utc).timestamp()
    assert sorted(row["ended"] for row in _rows(tmp_path)) == sorted([local, utc])


def test_what_is_too_old_to_be_kept_is_not_imported(tmp_path: Path) -> None:
    assert _import(tmp_path, OLD, since=time.time() + 1e9) == Imported(too_old=1)


@settings(max_examples=200, deadline=None)
@given(line=st.binary(max_size=60) | st.dictionaries(st.sampled_from(sorted(OURS)), st.integers() | st.text()))
def test_no_line_is_anything_but_a_record_or_malformed(tmp_path_factory: Any, line: Any) -> None:
    whole = line if isinstance(line, bytes) else {**OURS, **line}
    result = _import(tmp_path_factory.mktemp("lines"), whole)
    assert result.added + result.malformed <= whole.count(b"\n") + 1 if isinstance(whole, bytes) else 1
