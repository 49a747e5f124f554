"""``claude-force run``: an answer on standard output, a note on standard error."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from claude_force_orchestrator.cli._lines import MAX_LINE


def test_the_second_time_is_a_hit_and_free(cli: Any, api: Any) -> None:
    first = cli("run", "reviewer", "Review print().")
    second = cli("run", "reviewer", "Review print().")
    assert (first.code, second.code) == (0, 0)
    assert first.err.startswith("miss: ")
    assert second.err.startswith("hit, ")
    assert "saved" in second.err
    assert first.out == second.out != ""
    assert api.requests() == 1


def test_json_has_the_result_and_what_it_took(cli: Any) -> None:
    cli("run", "reviewer", "Review print().")
    result = cli("run", "reviewer", "Review print().", "--json").json
    assert result["agent"] == "reviewer"
    assert result["success"] is True
    assert result["errors"] == []
    assert result["metadata"]["cached"] is True
    assert result["metadata"]["estimated_cost"] == 0
    assert result["metadata"]["saved_cost"] > 0


def test_a_dash_reads_the_task_from_standard_input(cli: Any, api: Any) -> None:
    asked = cli("run", "reviewer", "-", stdin="Grüße, 世界\n".encode())
    assert asked.code == 0
    assert cli("run", "reviewer", "Grüße, 世界\n").out == asked.out
    assert api.requests() == 1


def test_another_model_or_limit_is_another_question(cli: Any, api: Any) -> None:
    for more in ([], ["--model", "claude-sonnet-5-5"], ["--max-tokens", "500"]):
        assert cli("run", "reviewer", "Review print().", *more).code == 0
    assert api.requests() == 3


def test_an_edited_agent_is_another_question(cli: Any, api: Any, project: Path) -> None:
    cli("run", "reviewer", "Review print().")
    (project / ".claude" / "agents" / "reviewer.md").write_text("You review Rust code.\n")
    assert cli("run", "reviewer", "Review print().").err.startswith("miss: ")
    assert api.requests() == 2


def test_no_cache_asks_again_and_stores(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "Review print().")
    assert cli("run", "reviewer", "Review print().", "--no-cache").err.startswith("miss: ")
    assert cli("run", "reviewer", "Review print().").err.startswith("hit")
    assert api.requests() == 2


def test_no_store_leaves_nothing(cli: Any, api: Any) -> None:
    for _ in range(2):
        assert cli("run", "reviewer", "Review print().", "--no-store").err.startswith("miss: ")
    assert api.requests() == 2
    assert cli("cache", "stats", "--json").json["entries"] == 0


def test_only_if_cached_never_calls(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "Review print().", "--only-if-cached").assert_refused("cache", code=1)
    assert api.requests() == 0
    cli("run", "reviewer", "Review print().")
    assert cli("run", "reviewer", "Review print().", "--only-if-cached").code == 0
    assert api.requests() == 1


def test_options_that_contradict_each_other_are_refused(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "x", "--no-cache", "--only-if-cached").assert_refused("--no-cache", "--only-if-cached")
    assert api.requests() == 0


def test_a_failed_call_is_exit_code_1_and_json_still_tells(cli: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = cli("run", "reviewer", "Review print().", "--json", ANTHROPIC_BASE_URL=url)
    done.assert_refused("cannot reach 127.0.0.1", code=1)
    assert done.json["success"] is False
    assert done.json["errors"]


def test_a_call_without_a_key_says_how_to_set_it(cli: Any) -> None:
    cli("run", "reviewer", "Review print().", ANTHROPIC_API_KEY=None).assert_refused("ANTHROPIC_API_KEY", code=1)


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("reviewr", ["reviewr", "did you mean", "'reviewer'"]),
        ("zzz", ["zzz", "claude.json"]),
        ("reviewer\n", ["letters, digits"]),
        ("../reviewer", ["letters, digits"]),
        ("réviewer", ["letters, digits"]),
        ("", ["letters, digits"]),
        ("a" * 1000, ["letters, digits"]),
        ("reviewer\x1b[31m", ["letters, digits"]),
    ],
    ids=["near", "far", "newline", "path", "accent", "empty", "long", "escape"],
)
def test_a_wrong_agent_name_is_refused(cli: Any, api: Any, agent: str, words: Any) -> None:
    cli("run", agent, "task").assert_refused(*words)
    assert api.requests() == 0


def test_tasks_that_cannot_be_sent_are_refused(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "-", stdin=b"x" * 100_001).assert_refused("100,001", "100,000")
    cli("run", "reviewer", "-", stdin=b"x" * (MAX_LINE + 1)).assert_refused("more than", "100,000")
    cli("run", "reviewer", "-", stdin=b"").assert_refused("blank")
    cli("run", "reviewer", " \n ").assert_refused("blank")
    cli("run", "reviewer", "-", stdin=b"caf\xe9").assert_refused("UTF-8")
    # Bytes that are no UTF-8 reach Python's command line as lone surrogates.
    cli("run", "reviewer", os.fsdecode(b"caf\xe9")).assert_refused("surrogate")
    assert api.requests() == 0


def test_a_task_of_exactly_the_limit_is_sent(cli: Any, api: Any) -> None:
    assert cli("run", "reviewer", "-", stdin=b"x" * 100_000).code == 0
    assert api.requests() == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", ["claude.json", "JSON", "line 1"]),
        (b"[]", ["claude.json", "object"]),
        (b"\xff\xfe{}", ["claude.json", "UTF-8"]),
        (b'{"agents": []}', ["claude.json", "agents"]),
        (b'{"agents": {"reviewer": {}}}', ["claude.json", "reviewer", "file"]),
        (b'{"agents": {}, "cache": {"ttl_hours": 0}}', ["claude.json", "ttl_hours"]),
        (b'{"agents": {}, "cache": {"max_size_mb": -1}}', ["claude.json", "max_size_mb"]),
        (b'{"agents": {}, "cache": {"url": "nosuch://"}}', ["nosuch"]),
        (b"[" * 100_000, ["claude.json"]),
    ],
    ids=["cut", "list", "binary", "agents", "file", "ttl", "size", "url", "deep"],
)
def test_a_broken_claude_json_is_refused(cli: Any, project: Path, text: bytes, words: Any) -> None:
    (project / ".claude" / "claude.json").write_bytes(text)
    cli("run", "reviewer", "task", CLAUDE_CACHE_URL=None).assert_refused(*words)


def test_a_project_that_is_not_there_is_refused(cli: Any, tmp_path: Path) -> None:
    cli("run", "reviewer", "task", "--config", str(tmp_path / "none.json")).assert_refused("none.json")
    cli("run", "reviewer", "task", "--config", str(tmp_path)).assert_refused("folder")


def test_an_agent_file_that_cannot_be_used_is_refused(
    cli: Any, api: Any, project: Path, configure: Any, tmp_path: Path
) -> None:
    (tmp_path / "outside.md").write_text("secret")
    (project / "agents-link.md").symlink_to(tmp_path / "outside.md")
    (project / ".claude" / "agents" / "binary.md").write_bytes(b"\xff\xfe\x00")
    for file, words in (
        ("agents/none.md", ["reviewer", "agents/none.md", "does not exist"]),
        ("../../outside.md", ["reviewer", "outside the project"]),
        (str(tmp_path / "outside.md"), ["reviewer", "outside the project"]),
        ("../agents-link.md", ["reviewer", "outside the project"]),
        ("agents/binary.md", ["reviewer", "UTF-8"]),
        ("agents", ["reviewer", "not a file"]),
    ):
        configure({"reviewer": {"file": file}})
        cli("run", "reviewer", "task").assert_refused(*words)
    assert api.requests() == 0


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_bounds_nothing_is_refused(cli: Any, timeout: str) -> None:
    cli("run", "reviewer", "task", "--timeout", timeout).assert_refused("timeout")
