"""Tracking: a line for each execution, whatever becomes of it, and never at the cost of an answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List

import pytest

from claude_force_orchestrator import AgentResult, AsyncAgentOrchestrator, ExecutionMetadata
from claude_force_orchestrator._tracking import Record, Tracker

FIELDS = [
    "timestamp",
    "agent_name",
    "task_hash",
    "success",
    "execution_time_ms",
    "model",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "estimated_cost",
    "error_type",
    "workflow_name",
    "workflow_position",
    "cached",
    "saved_cost",
]


def _lines(config: Path) -> List[Dict[str, Any]]:
    text = (config.parent / "metrics" / "executions.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_hit_a_miss_a_failure_and_a_cancellation_are_each_one_line(run: Any, api: Any, config: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "x", workflow_name="both", workflow_position=1)
        await it.execute_agent("code-reviewer", "x")
        await it.execute_agent("nobody", "x")
        api.default.gate = threading.Event()
        task = asyncio.ensure_future(it.execute_agent("code-reviewer", "new"))
        await api.arrived(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        api.default.gate.set()

    run(ask, enable_tracking=True)
    miss, hit, failed, cancelled = lines = _lines(config)
    assert all(list(line) == FIELDS for line in lines)
    now = datetime.now(timezone.utc)
    for line in lines:
        stamp = datetime.fromisoformat(line["timestamp"])
        assert timedelta(0) <= now - stamp < timedelta(minutes=1)
        assert stamp.utcoffset() == timedelta(0)
        assert line["execution_time_ms"] >= 0
    assert [line["success"] for line in lines] == [True, True, False, False]
    assert [line["cached"] for line in lines] == [False, True, False, False]
    assert [line["error_type"] for line in lines] == [None, None, "UnknownAgentError", "CancelledError"]
    assert miss["estimated_cost"] == hit["saved_cost"] == pytest.approx(0.0002)
    assert miss["saved_cost"] == hit["estimated_cost"] == failed["estimated_cost"] == 0
    assert (miss["input_tokens"], miss["output_tokens"], miss["total_tokens"]) == (1000, 200, 1200)
    assert (miss["workflow_name"], miss["workflow_position"]) == ("both", 1)
    assert miss["task_hash"] == hit["task_hash"] != cancelled["task_hash"]
    assert miss["model"] == cancelled["model"] == "claude-haiku-5-5"
    assert failed["agent_name"] == "nobody"


def test_tasks_and_answers_are_not_recorded(run: Any, config: Path) -> None:
    run(lambda it: it.execute_agent("code-reviewer", "a private matter"), enable_tracking=True)
    text = (config.parent / "metrics" / "executions.jsonl").read_text(encoding="utf-8")
    assert "private" not in text
    assert "good answer" not in text


def test_without_tracking_nothing_is_written(run: Any, config: Path) -> None:
    run(lambda it: it.execute_agent("code-reviewer", "x"), enable_tracking=False)
    assert not (config.parent / "metrics").exists()


def test_odd_values_are_recorded_too(run: Any, config: Path) -> None:
    async def ask(it: AsyncAgentOrchestrator) -> None:
        await it.execute_agent("code-reviewer", "\ud800")
        await it.execute_agent(None, b"x", workflow_name=Path("w"))  # type: ignore[arg-type]  # that is the point

    run(ask, enable_tracking=True)
    assert [line["workflow_name"] for line in _lines(config)] == [None, "w"]


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
    assert (config.parent / "metrics").read_text() == "in the way"


def _record(number: int) -> Record:
    metadata = ExecutionMetadata("m", number, 0, number, 0.0, False, None, 0.0, 0.0)
    return Record(1.8e9, "x" * 500, AgentResult("a", True, "", metadata), None)


def test_a_full_disk_costs_its_records_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full, which Linux has")
    tracker = Tracker(Path("/dev/full"))
    for number in range(10):
        tracker.record(_record(number))
        tracker.flush()
    tracker.close()
    assert len(caplog.records) == 1


_TORN = """
import resource, sys
from pathlib import Path
from claude_force_orchestrator import AgentResult, ExecutionMetadata
from claude_force_orchestrator._tracking import Record, Tracker

tracker = Tracker(Path(sys.argv[1]))
metadata = ExecutionMetadata("m", 7, 0, 7, 0.0, False, None, 0.0, 0.0)
for limit in (100, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    tracker.record(Record(1.8e9, "x", AgentResult("a", True, "", metadata), None))
    tracker.flush()
tracker.close()
"""


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "executions.jsonl"
    subprocess.run([sys.executable, "-W", "ignore", "-c", _TORN, str(path)], check=True, timeout=60)
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 100
    assert json.loads(whole)["input_tokens"] == 7


def test_everything_queued_is_written_at_close_and_a_closed_tracker_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "executions.jsonl"
    tracker = Tracker(path)
    for number in range(25_000):
        tracker.record(_record(number))
        if tracker.crowded:
            tracker.flush()
    tracker.close()
    tracker.record(_record(25_000))
    tracker.close()
    numbers = [json.loads(line)["input_tokens"] for line in path.read_text().splitlines()]
    assert numbers == list(range(25_001))


def test_the_thread_writes_by_itself_and_ends_with_the_tracker(tmp_path: Path) -> None:
    path = tmp_path / "executions.jsonl"
    tracker = Tracker(path)
    tracker.record(_record(0))
    thread = next(thread for thread in threading.enumerate() if thread.name == "claude-force-tracking")
    for _ in range(500):
        if path.exists() and path.read_text().endswith("\n"):
            break
        thread.join(0.01)
    assert len(path.read_text().splitlines()) == 1
    del tracker
    thread.join(10)
    assert not thread.is_alive()


_WRITER = """
import sys
from pathlib import Path
from claude_force_orchestrator import AgentResult, ExecutionMetadata
from claude_force_orchestrator._tracking import Record, Tracker

tracker = Tracker(Path(sys.argv[1]))
for number in range(2000):
    metadata = ExecutionMetadata("m", int(sys.argv[2]) + number, 0, 0, 0.0, False, None, 0.0, 0.0)
    tracker.record(Record(1.8e9, "x" * 500, AgentResult("a", True, "", metadata), None))
    if number % 50 == 0:
        tracker.flush()
tracker.close()
"""


def test_several_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "executions.jsonl"
    firsts = [0, 10_000, 20_000]
    writers = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", _WRITER, str(path), str(first)]) for first in firsts
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    numbers = sorted(json.loads(line)["input_tokens"] for line in path.read_text().splitlines())
    assert numbers == [first + number for first in firsts for number in range(2000)]
