"""Tracking: each execution is recorded once, whatever becomes of it, and never at the cost of an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from claude_force_orchestrator import (
    AsyncAgentOrchestrator,
    ConfigError,
    ExecutionRecord,
    ProjectError,
    SQLiteTracker,
    Tracker,
)
from claude_force_orchestrator._answer import read_answer
from claude_force_orchestrator._execution import Execution
from claude_force_orchestrator._executions import COLUMNS

DAY = 86_400.0


def _rows(path: Path) -> List[Dict[str, Any]]:
    with closing(sqlite3.connect(str(path))) as file:
        file.row_factory = sqlite3.Row
        return [dict(row) for row in file.execute("SELECT * FROM executions ORDER BY id")]


def _record(number: int = 0, **fields: Any) -> ExecutionRecord:
    given: Dict[str, Any] = {"ended": time.time(), "agent": "a", "model": "m", "outcome": "miss", "latency": 0.5}
    return ExecutionRecord(**{**given, "input_tokens": number, **fields})


def _numbers(path: Path) -> List[int]:
    return [row["input_tokens"] for row in _rows(path)]


@pytest.fixture
def file(config: Path) -> Path:
    return config.parent / "metrics" / "executions.db"


@pytest.fixture
def python() -> Callable[..., None]:
    """Run a script with arguments, to its end."""

    def run(script: str, *arguments: object) -> None:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)]
        subprocess.run(command, check=True, timeout=60)

    return run


class Listener:
    """A tracker of somebody's own, which keeps what it is told."""

    def __init__(self) -> None:
        self.records: List[ExecutionRecord] = []
        self.flushed = 0

    def record(self, record: ExecutionRecord) -> bool:
        self.records.append(record)
        return False

    def flush(self) -> None:
        self.flushed += 1


def test_a_hit_a_miss_a_bypass_a_failure_and_a_cancellation_are_each_recorded_once(
    run: Any, api: Any, file: Path
) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x", workflow_name="both", workflow_position=1)
        await it.execute_agent("code-reviewer", "x")
        await it.execute_agent("code-reviewer", "x", cache="no-store")
        await it.execute_agent("nobody", "x")
        api.default.gate = threading.Event()
        task = asyncio.ensure_future(it.execute_agent("code-reviewer", "new"))
        await api.arrived(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        api.default.gate.set()

    run(ask, enable_tracking=True)
    rows = _rows(file)
    assert [row["outcome"] for row in rows] == ["miss", "hit", "bypass", "failure", "cancelled"]
    assert [row["error"] for row in rows] == [None, None, None, "UnknownAgentError", "CancelledError"]
    miss, hit, bypass, failed, cancelled = rows
    now = time.time()
    for row in rows:
        assert 0 <= now - row["ended"] < 60
        assert row["latency"] >= 0
        assert (row["imported"], row["stale"], row["streamed"], row["run"]) == (None, 0, 0, None)
    assert miss["cost"] == hit["saved"] == bypass["cost"] == pytest.approx(0.0002)
    assert miss["saved"] == hit["cost"] == failed["cost"] == cancelled["cost"] == 0
    for row in (miss, hit, bypass):
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 200)
        assert (row["cache_write_tokens"], row["cache_read_tokens"]) == (0, 0)
    assert (miss["workflow"], miss["position"]) == ("both", 1)
    assert len(miss["key"]) == 64
    assert hit["key"] == miss["key"]
    assert 0 <= hit["key_age"] < 60
    assert (miss["key_age"], bypass["key"]) == (None, None)
    assert [row["backend"] for row in rows] == ["memory", "memory", None, None, "memory"]
    assert miss["model"] == cancelled["model"] == "claude-haiku-5-5"
    assert [row["agent"] for row in rows] == [*["code-reviewer"] * 3, "nobody", "code-reviewer"]


def test_tokens_of_the_apis_prompt_cache_are_told_apart(run: Any, api: Any, file: Path) -> None:
    usage = {
        "input_tokens": 7,
        "output_tokens": 5,
        "cache_read_input_tokens": 300,
        "cache_creation_input_tokens": 20,
    }
    api.says(api.reply(api.message(usage=usage)))
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=True)
    (row,) = _rows(file)
    assert [row[f"{name}_tokens"] for name in ("input", "output", "cache_write", "cache_read")] == [7, 5, 20, 300]


def test_an_unknown_price_is_unknown_and_not_zero(run: Any, api: Any, file: Path) -> None:
    api.default = api.reply(api.message(model="claude-of-tomorrow"))

    async def ask(it: AsyncAgentOrchestrator) -> None:
        for _ in range(2):
            await it.execute_agent("code-reviewer", "x", model="claude-of-tomorrow")

    run(ask, enable_tracking=True)
    assert [(row["cost"], row["saved"]) for row in _rows(file)] == [(None, 0), (0, None)]


def test_an_answer_of_no_use_is_a_failure_that_was_paid_for(run: Any, api: Any, file: Path) -> None:
    api.says(api.reply(api.message("no", "refusal")))
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=True)
    (row,) = _rows(file)
    assert (row["outcome"], row["error"], row["cost"]) == ("failure", "RefusedError", pytest.approx(0.0002))


def test_what_is_paid_for_in_the_background_is_recorded_beside_the_hit(make: Any, api: Any) -> None:
    now, tracker = [1.8e9], Listener()

    async def ask() -> float:
        async with make(tracker=tracker, enable_tracking=True, clock=lambda: now[0]) as it:
            await it.execute_agent("code-reviewer", "x", ttl_hours=1, stale_while_revalidate_hours=10)
            now[0] += 2 * 3600
            await it.execute_agent("code-reviewer", "x", stale_while_revalidate_hours=10)
            await api.arrived(2)
        spent: float = it.totals.usd_spent
        return spent

    spent = asyncio.run(ask())
    assert sorted(record.outcome for record in tracker.records) == ["background", "hit", "miss"]
    (hit,) = (record for record in tracker.records if record.outcome == "hit")
    assert (hit.stale, hit.key_age) == (True, 7200)
    assert spent == pytest.approx(0.0004)
    assert sum(record.cost or 0 for record in tracker.records) == pytest.approx(spent)


def test_an_answer_that_comes_after_its_caller_has_left_is_paid_for_once(make: Any, api: Any) -> None:
    tracker = Listener()

    async def ask() -> float:
        async with make(tracker=tracker, enable_tracking=True) as it:
            api.default.gate = threading.Event()
            first = asyncio.ensure_future(it.execute_agent("code-reviewer", "x"))
            await api.arrived(1)
            second = asyncio.ensure_future(it.execute_agent("code-reviewer", "x"))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            api.default.gate.set()
            assert (await second).success
        spent: float = it.totals.usd_spent
        return spent

    spent = asyncio.run(ask())
    assert len(api.requests) == 1
    assert sorted(record.outcome for record in tracker.records) == ["background", "cancelled", "hit"]
    assert sum(record.cost or 0 for record in tracker.records) == pytest.approx(spent) == pytest.approx(0.0002)


def test_an_answer_that_came_but_was_not_waited_for_is_recorded_beside_the_cancellation(make: Any, api: Any) -> None:
    tracker = Listener()

    async def ask() -> None:
        async with make(tracker=tracker, enable_tracking=True) as it:
            execution = Execution("code-reviewer", "x", None, "w", 1, run="r")
            execution.paid = read_answer(
                json.dumps(api.message()).encode(), content_type="application/json", created=1.8e9
            )
            it._record(execution, execution.cancel(), "CancelledError")

    asyncio.run(ask())
    cancelled, beside = tracker.records
    assert (cancelled.outcome, cancelled.cost) == ("cancelled", 0.0)
    assert (beside.outcome, beside.cost) == ("background", pytest.approx(0.0002))
    assert (beside.workflow, beside.position, beside.run) == ("w", 1, "r")


def test_the_steps_of_one_run_of_a_workflow_have_the_run_in_common(run: Any, file: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.run_workflow("both", "x")
        await it.run_workflow("both", "x")

    run(ask, enable_tracking=True)
    rows = _rows(file)
    assert [row["workflow"] for row in rows] == ["both"] * 4
    assert sorted(row["position"] for row in rows) == sorted([rows[0]["position"], rows[1]["position"]] * 2)
    first, second = rows[0]["run"], rows[2]["run"]
    assert [row["run"] for row in rows] == [first, first, second, second]
    assert first != second


def test_nothing_that_was_asked_or_answered_is_recorded(run: Any, api: Any, file: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "a private matter")
        await it.execute_agent("a private matter", "code-reviewer")
        api.default = api.reply(status=400)
        await it.execute_agent("code-reviewer", "another private matter")

    run(ask, enable_tracking=True)
    assert [row["agent"] for row in _rows(file)] == ["code-reviewer", None, "code-reviewer"]
    for path in file.parent.iterdir():
        data = path.read_bytes()
        for secret in (b"private", b"good answer", b"sk-ant", b"secret of the tests"):
            assert secret not in data


def test_without_tracking_nothing_is_written(run: Any, config: Path, edit: Any) -> None:
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=False)
    edit(tracking={"enabled": False})
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=None)
    assert not (config.parent / "metrics").exists()


def test_a_project_says_where_and_how_much_is_kept(run: Any, config: Path, edit: Any) -> None:
    edit(tracking={"path": "elsewhere/all.db", "max_age_days": 1, "max_records": 7})
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=True)
    assert len(_rows(config.parent / "elsewhere" / "all.db")) == 1
    tracking = AsyncAgentOrchestrator(config).settings.tracking
    assert (tracking.enabled, tracking.max_age_days, tracking.max_records) == (True, 1, 7)


@pytest.mark.parametrize(
    "section", [{"enabled": "yes"}, {"path": 7}, {"max_age_days": 0}, {"max_records": 0}, {"max_records": 1.5}], ids=str
)
def test_a_section_that_cannot_be_used_is_an_error_that_names_it(config: Path, edit: Any, section: Any) -> None:
    edit(tracking=section)
    with pytest.raises(ProjectError, match=f"tracking.{next(iter(section))} "):
        AsyncAgentOrchestrator(config)


def test_odd_values_are_recorded_as_far_as_they_can_be(run: Any, file: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "\ud800", workflow_name="\ud800")
        await it.execute_agent(None, b"x", workflow_name=Path("w"))  # type: ignore[arg-type]  # that is the point

    run(ask, enable_tracking=True)
    assert [(row["agent"], row["workflow"]) for row in _rows(file)] == [("code-reviewer", "?"), ("None", None)]


def test_numbers_that_no_column_can_hold_cost_only_themselves(tmp_path: Path) -> None:
    tracker = SQLiteTracker(tmp_path / "executions.db")
    tracker.record(_record(10**30, workflow="w" * 100_000))
    tracker.record(_record(1))
    tracker.close()
    assert _numbers(tracker.path) == [None, 1]


def test_a_tracker_can_be_given_and_stays_its_owners(make: Any) -> None:
    tracker = Listener()
    assert isinstance(tracker, Tracker)
    assert isinstance(SQLiteTracker("x"), Tracker)

    async def ask() -> None:
        async with make(tracker=tracker, enable_tracking=True) as it:
            await it.execute_agent("code-reviewer", "x")

    asyncio.run(ask())
    assert [record.outcome for record in tracker.records] == ["miss"]
    assert tracker.flushed == 1


def test_what_is_no_tracker_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="record and flush"):
        make(tracker=print)


def test_switched_off_a_given_tracker_is_told_nothing(run: Any) -> None:
    tracker = Listener()
    run(lambda it: it.execute_agent("code-reviewer", "x"), tracker=tracker, enable_tracking=False)
    assert (tracker.records, tracker.flushed) == ([], 0)


def test_a_tracker_that_fails_costs_one_warning_and_no_answer(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def record(self, record: ExecutionRecord) -> bool:
            raise ValueError("a defect")

        def flush(self) -> None:
            raise ValueError("another")

    async def ask(it: AsyncAgentOrchestrator) -> None:
        for _ in range(3):
            assert (await it.execute_agent("code-reviewer", "x")).success

    run(ask, tracker=Broken(), enable_tracking=True)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the tracker failed, executions are not recorded: ValueError('a defect')"
    ]


def test_whoever_records_much_waits_until_it_is_written(make: Any) -> None:
    class Crowded(Listener):
        def record(self, record: ExecutionRecord) -> bool:
            return not super().record(record)

    tracker = Crowded()

    async def ask() -> None:
        async with make(tracker=tracker, enable_tracking=True) as it:
            await it.execute_agent("code-reviewer", "x")
            assert tracker.flushed == 1

    asyncio.run(ask())


def test_a_file_that_cannot_be_written_costs_one_warning_and_no_answer(
    run: Any, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (config.parent / "metrics").write_text("in the way")

    async def ask(it: AsyncAgentOrchestrator) -> None:
        for index in range(3):
            assert (await it.execute_agent("code-reviewer", f"x{index}")).success
            await asyncio.sleep(0.1)

    run(ask, enable_tracking=True)
    assert len([record for record in caplog.records if "cannot be recorded" in record.message]) == 1
    assert [record.args[0] for record in caplog.records if "could not be" in record.message] == [3]  # type: ignore[index]
    assert (config.parent / "metrics").read_text() == "in the way"


def test_a_file_of_another_program_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "executions.db"
    with closing(sqlite3.connect(str(path))) as other, other:
        other.execute("CREATE TABLE executions (id TEXT)")
    before = path.read_bytes()
    tracker = SQLiteTracker(path)
    tracker.record(_record())
    tracker.close()
    assert path.read_bytes() == before
    assert "tracking.path" in caplog.records[0].message


def test_what_another_process_kept_from_being_written_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claude_force_orchestrator._tracker._BUSY_SECONDS", 0.01)
    tracker = SQLiteTracker(tmp_path / "executions.db")
    tracker.record(_record(0))
    tracker.flush()
    with closing(sqlite3.connect(str(tracker.path), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(1, 4):
            tracker.record(_record(number))
            tracker.flush()
        other.execute("ROLLBACK")
    tracker.close()
    assert _numbers(tracker.path) == [0, 1, 2, 3]
    assert len(caplog.records) == 1


def test_closing_waits_for_another_process_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claude_force_orchestrator._tracker._BUSY_SECONDS", 0.01)
    tracker = SQLiteTracker(tmp_path / "executions.db")
    tracker.record(_record(0))
    tracker.flush()
    with closing(sqlite3.connect(str(tracker.path), isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker.record(_record(1))
        release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        release.start()
        tracker.close()
        release.join()
    assert _numbers(tracker.path) == [0, 1]


def test_a_file_that_stays_locked_costs_the_oldest_records_and_bounded_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("claude_force_orchestrator._tracker._BUSY_SECONDS", 0.01)
    tracker = SQLiteTracker(tmp_path / "executions.db")
    tracker.record(_record(0))
    tracker.flush()
    with closing(sqlite3.connect(str(tracker.path), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(1, 12_001):
            if tracker.record(_record(number)):
                tracker.flush()
            assert len(tracker._writer.pending) <= 10_001
        tracker.flush()
        other.execute("ROLLBACK")
    tracker.close()
    assert _numbers(tracker.path) == [0, *range(7_001, 12_001)]
    assert [record.args for record in caplog.records if "could not be" in record.message] == [(7_000, tracker.path)]


def test_everything_queued_is_written_at_close_and_a_closed_tracker_starts_again(tmp_path: Path) -> None:
    tracker = SQLiteTracker(tmp_path / "metrics" / "executions.db")
    for number in range(25_000):
        if tracker.record(_record(number)):
            tracker.flush()
    tracker.close()
    tracker.record(_record(25_000))
    tracker.close()
    assert _numbers(tracker.path) == list(range(25_001))
    assert [path.name for path in tracker.path.parent.iterdir()] == ["executions.db"]
    assert tracker.path.stat().st_mode & 0o777 == 0o600


def test_the_thread_writes_by_itself_and_ends_with_the_tracker(tmp_path: Path) -> None:
    path = tmp_path / "executions.db"
    tracker = SQLiteTracker(path)
    tracker.close()
    tracker.record(_record(0))
    tracker.close()
    path.unlink()
    tracker.record(_record(0))
    thread = next(thread for thread in threading.enumerate() if thread.name == "claude-force-tracking")
    for _ in range(500):
        if path.exists() and not tracker._writer.pending and not tracker._writer._write_lock.locked():
            break
        thread.join(0.01)
    assert _numbers(path) == [0]
    del tracker
    thread.join(10)
    assert not thread.is_alive()


def test_several_processes_share_one_file(tmp_path: Path) -> None:
    script = """
        import sys
        from claude_force_orchestrator import ExecutionRecord, SQLiteTracker

        tracker = SQLiteTracker(sys.argv[1])
        for number in range(int(sys.argv[2]), int(sys.argv[2]) + 2000):
            tracker.record(ExecutionRecord(1.8e9, "a", "m", "miss", 0.1, None, number))
            if number % 50 == 0:
                tracker.flush()
        tracker.close()
    """
    path, firsts = tmp_path / "executions.db", [0, 10_000, 20_000]
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(path)]
    writers = [subprocess.Popen([*command, str(first)]) for first in firsts]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(_numbers(path)) == [first + number for first in firsts for number in range(2000)]


def test_a_process_that_ends_by_itself_writes_what_is_queued(tmp_path: Path, python: Any) -> None:
    script = """
        import sys
        from claude_force_orchestrator import ExecutionRecord, SQLiteTracker

        tracker = SQLiteTracker(sys.argv[1])
        for number in range(100):
            tracker.record(ExecutionRecord(1.8e9, "a", "m", "miss", 0.1, None, number))
    """
    python(script, tmp_path / "executions.db")
    assert _numbers(tmp_path / "executions.db") == list(range(100))


def test_a_process_that_is_killed_loses_nothing_that_was_written(tmp_path: Path) -> None:
    script = """
        import sys, time
        from claude_force_orchestrator import ExecutionRecord, SQLiteTracker

        tracker = SQLiteTracker(sys.argv[1])
        for number in range(100):
            tracker.record(ExecutionRecord(1.8e9, "a", "m", "miss", 0.1, None, number))
        tracker.flush()
        print("written", flush=True)
        time.sleep(60)
    """
    path = tmp_path / "executions.db"
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert _numbers(path) == list(range(100))


def test_a_forked_process_records_its_own_executions_and_none_of_its_parents(tmp_path: Path, python: Any) -> None:
    script = """
        import os, sys
        from claude_force_orchestrator import ExecutionRecord, SQLiteTracker

        def record(number):
            tracker.record(ExecutionRecord(1.8e9, "a", "m", "miss", 0.1, None, number))

        tracker = SQLiteTracker(sys.argv[1])
        record(0)
        tracker.flush()
        record(1)
        child = os.fork()
        record(2 if child else 3)
        if child:
            assert os.waitpid(child, 0)[1] == 0
        tracker.close()
        if not child:
            os._exit(0)
    """
    python(script, tmp_path / "executions.db")
    assert sorted(_numbers(tmp_path / "executions.db")) == [0, 1, 2, 3]


def test_old_records_and_the_oldest_above_the_limit_are_deleted(tmp_path: Path) -> None:
    now = 1.8e9
    tracker = SQLiteTracker(tmp_path / "executions.db", max_age_days=10, max_records=3, clock=lambda: now)
    # What is imported comes late, and is old all the same.
    for number, days in enumerate((1, 2, 11, 3, 4, 9)):
        tracker.record(_record(number, ended=now - days * DAY))
    tracker.close()
    assert _numbers(tracker.path) == [0, 1, 3]


def test_pruning_goes_on_while_a_process_runs(tmp_path: Path) -> None:
    tracker = SQLiteTracker(tmp_path / "executions.db", max_records=1_000)
    for number in range(25_000):
        if tracker.record(_record(number)):
            tracker.flush()
    tracker.close()
    numbers = _numbers(tracker.path)
    assert 1_000 <= len(numbers) < 11_000
    assert numbers[-1] == 24_999


def test_the_columns_are_those_of_a_record(tmp_path: Path) -> None:
    tracker = SQLiteTracker(tmp_path / "executions.db")
    full: Tuple[Any, ...] = (
        *(1.8e9, "agent", "model", "hit", 0.25, "Error", 1, 2, 3, 4, 0.5, 0.75, "disk", 60.0, "ab", True, True),
        *("flow", 2, "run", -0.125),
    )
    tracker.record(ExecutionRecord(*full))
    tracker.close()
    (row,) = _rows(tracker.path)
    assert tuple(row[name] for name in COLUMNS) == full
