"""``claude-force cache warm``: answers into the cache, before anybody waits for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest


@pytest.fixture
def tasks(project: Path) -> Callable[..., str]:
    """Write a file of tasks and return its name."""

    def write(*lines: object) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (project / "tasks.jsonl").write_text(text + "\n")
        return "tasks.jsonl"

    return write


def test_what_is_warm_is_a_hit_and_what_was_is_not_asked_again(cli: Any, api: Any, tasks: Any) -> None:
    cli("run", "reviewer", "Review b.")
    file = tasks('"Review a."', '"Review b."', {"task": "Write c.", "agent": "writer", "id": 7})
    done = cli("cache", "warm", file, "--agent", "reviewer")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("3 tasks: 1 were answered already, 2 are now, 0 failed; $")
    assert api.requests() == 3
    for agent, task in (("reviewer", "Review a."), ("reviewer", "Review b."), ("writer", "Write c.")):
        assert cli("run", agent, task, "--only-if-cached").code == 0
    again = cli("cache", "warm", "-", "--agent", "reviewer", stdin=b'"Review a."\n')
    assert again.err.startswith("1 tasks: 1 were answered already, 0 are now, 0 failed; $0.0000 spent")
    assert api.requests() == 3


def test_what_is_older_than_it_may_be_is_asked_again(cli: Any, api: Any, tasks: Any) -> None:
    file = tasks('"Review a."')
    cli("cache", "warm", file, "--agent", "reviewer")
    assert (
        "1 tasks: 0 were answered already, 1 are now"
        in cli("cache", "warm", file, "--agent", "reviewer", "--max-age-hours", "0").err
    )
    assert api.requests() == 2


def test_lines_that_fail_are_named_and_the_others_are_warm(cli: Any, api: Any, tasks: Any, configure: Any) -> None:
    agents = {name: {"file": f"agents/{name}.md"} for name in ("reviewer", "writer")}
    configure(agents, cache={"exclude_agents": ["writer"]})
    file = tasks(
        "no json",
        '"no agent"',
        {"task": "x", "agent": "writer"},
        {"task": "y", "agent": "reviewer"},
        {"task": " ", "agent": "reviewer"},
    )
    done = cli("cache", "warm", file)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert [error.partition(": ")[2].partition(":")[0] for error in sorted(errors)] == [
        f"line {number}" for number in (1, 2, 3, 5)
    ]
    assert "there is no --agent" in done.err
    assert "excluded from the cache" in done.err
    assert done.err.splitlines()[-1].startswith("5 tasks: 0 were answered already, 1 are now, 4 failed; ")
    assert api.requests() == 1


def test_many_failures_are_counted(cli: Any, tasks: Any) -> None:
    done = cli("cache", "warm", tasks(*(["[]"] * 25)))
    assert len(done.err.splitlines()) == 12
    assert "15 more lines failed: claude-force map" in done.err


def test_what_cannot_be_warmed_is_refused(cli: Any, api: Any, tasks: Any, configure: Any) -> None:
    file = tasks('"x"')
    cli("cache", "warm", file, "--agent", "revewer").assert_refused("did you mean 'reviewer'")
    cli("cache", "warm", "nowhere.jsonl").assert_refused("cannot read 'nowhere.jsonl'")
    configure({"reviewer": {"file": "agents/reviewer.md"}}, cache={"enabled": False})
    cli("cache", "warm", file, "--agent", "reviewer").assert_refused("switched off", "cache.enabled")
    assert api.requests() == 0
