"""``claude-force metrics``: what executions took, cost and saved, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from claude_force_orchestrator import ExecutionRecord, SQLiteTracker

DAY = 86_400.0


@pytest.fixture
def file(project: Path) -> Path:
    return project / ".claude" / "metrics" / "executions.db"


@pytest.fixture
def record(file: Path) -> Callable[..., None]:
    """Record an execution that ended so many days ago, as another process would."""

    def add(days: float = 0.0, **fields: Any) -> None:
        given: Dict[str, Any] = {"agent": "reviewer", "model": "m", "outcome": "miss", "latency": 2.0}
        given.update(cost=0.0, saved=0.0, input_tokens=10, output_tokens=20)
        tracker = SQLiteTracker(file)
        tracker.record(ExecutionRecord(time.time() - days * DAY, **{**given, **fields}))
        tracker.close()

    return add


@pytest.fixture
def some(record: Callable[..., None]) -> None:
    record(3, cost=0.5)
    record(2, outcome="hit", latency=0.004, saved=0.5, key_age=60.0, key="ab" * 32)
    record(2, agent="writer", model="unpriced", cost=None)
    record(1, outcome="failure", error="ServerError")


def test_what_commands_do_is_summed_up(cli: Any) -> None:
    for _ in range(2):
        assert cli("run", "reviewer", "Review heapq.").code == 0
    cli("run", "reviewer", "Review heapq.", "--no-store")
    cli("run", "nobody", "Review heapq.")
    total = cli("metrics", "summary", "--json").json
    counts = {name: total[name] for name in ("executions", "hits", "misses", "bypasses", "failures")}
    assert counts == {"executions": 4, "hits": 1, "misses": 1, "bypasses": 1, "failures": 1}
    assert (total["hit_rate"], total["unknown_spent"]) == (0.5, 0)
    assert total["spent"] == pytest.approx(2 * total["saved"])
    assert total["spent"] > 0
    assert 0 < total["hit_seconds"] < total["call_seconds_p95"]


def test_a_summary_is_a_table_with_what_is_not_known_said(cli: Any, some: None) -> None:
    shown = cli("metrics", "summary")
    assert (shown.code, shown.err) == (0, "")
    for words in ("4", "33.3 %", "$0.50 + 1 unknown", "4 ms", "2 s", "UTC"):
        assert words in shown.out


def test_agents_models_and_periods_are_compared(cli: Any, some: None) -> None:
    by_agent = {row["agent"]: row for row in cli("metrics", "agents", "--json").json}
    assert {name: row["executions"] for name, row in by_agent.items()} == {"reviewer": 3, "writer": 1}
    by_model = {row["model"]: row for row in cli("metrics", "costs", "--json").json}
    assert (by_model["m"]["spent"], by_model["unpriced"]["unknown_spent"]) == (0.5, 1)
    assert (by_model["m"]["input_tokens"], by_model["m"]["output_tokens"]) == (10, 20)
    days = cli("metrics", "trends", "--json").json
    assert [day["executions"] for day in days] == [1, 2, 1]
    assert all(day["start"] % DAY == 0 for day in days)
    assert sum(row["executions"] for row in cli("metrics", "trends", "--by", "week", "--json").json) == 4
    for command in ("agents", "costs", "trends"):
        shown = cli("metrics", command)
        assert (shown.code, shown.err) == (0, "")
        assert "$0.50" in shown.out
    assert "all" in cli("metrics", "costs").out


def test_filters_choose_executions(cli: Any, some: None) -> None:
    def count(*options: str) -> int:
        number: int = cli("metrics", "summary", "--json", *options).json["executions"]
        return number

    today, before = (time.strftime("%Y-%m-%d", time.gmtime(time.time() - days * DAY)) for days in (0, 2))
    assert count("--since", "36h") == 1
    assert count("--until", "36h") == 3
    assert count("--since", "60h", "--until", "36h") == 2
    assert count("--until", before) == 3
    assert count("--since", before) == 3
    assert count("--since", f"{today}T00:00:00Z") <= 1
    assert count("--agent", "writer") == 1
    assert count("--model", "m", "--agent", "reviewer") == 3
    assert cli("metrics", "agents", "--agent", "nobody").err.startswith("no execution in ")


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-13-01", "7", "-1d", "1e9d", "2026-11-24T25:00"])
def test_a_moment_that_is_none_is_refused(cli: Any, moment: str) -> None:
    cli("metrics", "summary", f"--since={moment}").assert_refused("--since", "7d")


def test_other_bad_options_are_refused(cli: Any) -> None:
    cli("metrics", "trends", "--by", "year").assert_refused("--by", "hour, day, week")
    cli("metrics", "export", "--format", "xml").assert_refused("--format", "csv, json, jsonl")


def test_without_executions_it_says_so_and_makes_no_file(cli: Any, file: Path, configure: Any) -> None:
    for command in ("summary", "agents", "costs", "trends"):
        shown = cli("metrics", command)
        assert (shown.code, shown.out, shown.err) == (0, "", f"there are no executions in {file}\n")
    assert cli("metrics", "agents", "--json").json == []
    assert cli("metrics", "summary", "--json").json["executions"] == 0
    assert cli("metrics", "export", "--format", "json").json == []
    assert not file.parent.exists()
    configure({}, tracking={"enabled": False})
    assert "switched off" in cli("metrics", "summary").err
    file.parent.mkdir()
    (file.parent / "executions.jsonl").write_text("")
    assert "metrics import" in cli("metrics", "summary").err


def test_executions_are_exported_in_three_formats(cli: Any, some: None, project: Path) -> None:
    as_lines = [json.loads(line) for line in cli("metrics", "export", "--format", "jsonl").out.splitlines()]
    as_list = cli("metrics", "export", "--format", "json").json
    shown = cli("metrics", "export")
    as_table = list(csv.DictReader(io.StringIO(shown.out)))
    assert shown.err == "exported 4 executions\n"
    assert as_lines == as_list
    assert [row["outcome"] for row in as_list] == ["miss", "hit", "miss", "failure"]
    for row, cells in zip(as_list, as_table):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == cells
        assert row["ended"].endswith("Z")
    assert (as_list[2]["cost"], as_table[2]["cost"]) == (None, "")
    done = cli("metrics", "export", "--agent", "writer", "--out", "some.csv")
    assert (done.code, done.out, done.err) == (0, "", "exported 1 execution\n")
    assert len((project / "some.csv").read_text().splitlines()) == 2
    assert not (project / ".some.csv.part").exists()
    cli("metrics", "export", "--out", "missing/some.csv").assert_refused("missing")
    assert cli("metrics", "export", "--out", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_no_cell_of_a_table_is_a_formula(cli: Any, record: Any) -> None:
    for start in ("=", "+", "-", "@", "\t=", "\r=", "\n="):
        record(workflow=f"{start}cmd|' /C calc'!A0", agent='a,"b"')
    rows = list(csv.DictReader(io.StringIO(cli("metrics", "export").out, newline="")))
    assert [row["workflow"] for row in rows] == [f"'{start}cmd|' /C calc'!A0" for start in "=+-@==="]
    assert {row["agent"] for row in rows} == {'a,"b"'}


def test_what_a_terminal_would_obey_is_made_visible(cli: Any, record: Any) -> None:
    record(model="m\x1b[31m", cost=1.0)
    shown = cli("metrics", "costs")
    assert "\x1b" not in shown.out
    assert r"m\x1b[31m" in shown.out


def test_old_records_are_imported_once(cli: Any, file: Path, project: Path) -> None:
    old = file.parent / "executions.jsonl"
    cli("metrics", "import").assert_refused("no file", "executions.jsonl")
    file.parent.mkdir()
    line: Dict[str, Any] = {
        "timestamp": "2026-11-02T10:00:00",
        "agent_name": "reviewer",
        "success": True,
        "execution_time_ms": 900,
        "model": "claude-haiku-5-5",
        "input_tokens": 1000,
        "output_tokens": 200,
        "estimated_cost": 0.0000002,
    }
    ancient = {**line, "timestamp": "2019-01-01T00:00:00"}
    rows = [line, line, ancient]
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("metrics", "import")
    assert done.code == 0
    assert done.err == "imported 2 executions, 0 had been imported before, 1 are older than 400 days\n"
    old.write_text(old.read_text() + "{\n" * 25)
    again = cli("metrics", "import", str(old))
    assert again.code == 1
    lines = again.err.splitlines()
    assert lines[0].startswith("imported 0 executions, 2 had been imported before")
    assert lines[1] == "line 4 was left out: no JSON"
    assert lines[-1] == "and 5 more lines were left out"
    assert cli("metrics", "import", "--json").json["malformed"] == 25
    assert cli("metrics", "summary", "--json").json["executions"] == 2


@pytest.mark.parametrize("command", [["summary"], ["agents"], ["export"], ["import", "executions.jsonl"]])
def test_a_file_of_another_program_is_refused_and_stays_as_it_is(cli: Any, file: Path, command: Any) -> None:
    (cli.folder / "executions.jsonl").write_text(
        '{"timestamp": "2026-11-02T10:00:00", "success": true, "model": "m", "execution_time_ms": 1}\n'
    )
    file.parent.mkdir()
    with sqlite3.connect(str(file)) as other:
        other.execute("CREATE TABLE executions (id TEXT)")
    other.close()
    before = file.read_bytes()
    cli("metrics", *command).assert_refused("another program", "tracking.path")
    assert file.read_bytes() == before
