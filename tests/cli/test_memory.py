"""``claude-force memory``, and the options that switch memory on and off."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from claude_force_orchestrator._sessions import Sessions

AGENTS = {"reviewer": {"file": "agents/reviewer.md"}, "writer": {"file": "agents/writer.md"}}


@pytest.fixture
def file(project: Path) -> Path:
    return project / ".claude" / "sessions.db"


@pytest.fixture(autouse=True)
def _on(configure: Callable[..., None]) -> None:
    configure(AGENTS, memory={"enabled": True})


@pytest.fixture
def record(file: Path) -> Callable[[str, str], None]:
    """Record a session as another process would; the stand-in quotes its prompts, which is not remembered."""
    return lambda agent, task: Sessions(file).record(
        agent, task, "An answer.", time.time(), anew=True, days=90.0, keep=1000
    )


def test_an_agent_remembers_and_the_same_task_is_still_a_hit(cli: Any, api: Any, record: Any) -> None:
    cli("run", "reviewer", "Review a.")
    record("reviewer", "Review b.")
    first = cli("run", "reviewer", "Review c.", "--json").json["metadata"]
    assert (first["memory_sessions"], first["cached"]) == (2, False)
    record("reviewer", "Review d.")
    again = cli("run", "reviewer", "Review c.", "--json").json["metadata"]
    assert (again["memory_sessions"], again["cached"]) == (2, True)
    assert api.requests() == 2
    assert cli("cache", "explain", "reviewer", "Review c.", "--json").json["hit"] is True
    assert cli("cache", "explain", "reviewer", "Review c.", "--no-memory", "--json").json["hit"] is False


def test_options_switch_it_on_and_off(cli: Any, configure: Any, file: Path, project: Path) -> None:
    tasks = project / "tasks.jsonl"
    tasks.write_text('"Review a."\n')
    cli("run", "reviewer", "Review a.", "--no-memory")
    cli("map", "reviewer", str(tasks), "--no-memory")
    assert not file.exists()
    configure(AGENTS, workflows={"both": ["reviewer", "writer"]})
    cli("workflow", "run", "both", "Review a.")
    assert not file.exists()
    assert cli("workflow", "run", "both", "Review a.", "--memory").code == 0
    assert cli("map", "reviewer", str(tasks), "--memory").code == 0
    found = cli("memory", "list", "--json").json
    assert found[-1]["agent"] == "reviewer"
    assert "switched off" in cli("memory", "list").err


def test_sessions_are_listed_shown_and_forgotten(cli: Any, file: Path, record: Any) -> None:
    assert f"no sessions in {file}" in cli("memory", "list").err
    assert not file.exists()
    cli("run", "reviewer", "Review a\x1b[31m.\nAnd this.")
    record("reviewer", "Review b.")
    record("writer", "Write c.")
    table = cli("memory", "list")
    assert table.code == 0
    assert "\x1b" not in table.out
    assert r"Review a\x1b[31m. And this." in table.out
    assert [session["task"] for session in cli("memory", "list", "--agent", "reviewer", "--json").json] == [
        "Review b.",
        "Review a\x1b[31m.\nAnd this.",
    ]
    assert len(cli("memory", "list", "--limit", "1", "--json").json) == 1
    shown = cli("memory", "show", "2")
    assert shown.out.startswith("Task:\nReview b.\n\nAnswer:\n")
    assert shown.err.startswith("session 2 of reviewer, ")
    assert cli("memory", "show", "2", "--json").json["id"] == 2
    forgotten = cli("memory", "forget", "2")
    assert forgotten.code == 0
    assert forgotten.err.startswith("forgot 1 session; ")
    assert "cache invalidate" in forgotten.err
    cli("memory", "show", "2").assert_refused("no session 2", "memory list", code=1)
    cli("memory", "forget", "2").assert_refused("no such session", code=1)
    cli("memory", "forget", "--agent", "reviewer").assert_refused("--yes")
    assert cli("memory", "forget", "--agent", "reviewer", "--yes").err.startswith("forgot 1 session;")
    assert [session["agent"] for session in cli("memory", "list", "--json").json] == ["writer"]
    assert cli("memory", "forget", "--all", "-y").code == 0
    assert cli("memory", "list", "--json").json == []


def test_forget_wants_to_know_what(cli: Any) -> None:
    cli("memory", "forget").assert_refused("one of", "--agent", "--all")
    cli("memory", "forget", "1", "--all", "--yes").assert_refused("one of")


def test_prune_keeps_what_the_project_or_the_option_says(cli: Any, configure: Any, record: Any) -> None:
    for task in ("a", "b", "c"):
        record("reviewer", task)
    assert cli("memory", "prune").err == "deleted 0 sessions\n"
    assert cli("memory", "prune", "--max-sessions", "2").err == "deleted 1 session\n"
    configure(AGENTS, memory={"max_sessions": 1})
    assert cli("memory", "prune").err == "deleted 1 session\n"
    assert [session["task"] for session in cli("memory", "list", "--json").json] == ["c"]
    assert cli("memory", "prune", "--max-age-days", "0").err == "deleted 1 session\n"


@pytest.mark.parametrize("command", [["list"], ["show", "1"], ["forget", "--all", "--yes"], ["prune"]])
def test_a_file_of_the_old_system_is_refused_and_stays_as_it_is(cli: Any, api: Any, file: Path, command: Any) -> None:
    with sqlite3.connect(str(file)) as old:
        old.execute("CREATE TABLE sessions (id TEXT)")
    old.close()
    before = file.read_bytes()
    cli("memory", *command).assert_refused("another program", "memory.path")
    cli("run", "reviewer", "x").assert_refused("another program", "memory.path")
    assert file.read_bytes() == before
    assert api.requests() == 0
    assert cli("run", "reviewer", "x", "--no-memory").code == 0


def test_a_file_that_cannot_be_opened_is_an_error_of_one_line(cli: Any, file: Path) -> None:
    file.mkdir()
    cli("memory", "list").assert_refused("cannot be used")
