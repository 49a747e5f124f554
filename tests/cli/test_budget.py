"""``--max-usd``: what would exceed it is not sent, is told, and can be asked again with more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import pytest

ENOUGH = "0.01"
FOR_NONE = "0.001"
"""Less than 4096 tokens of an answer of the default model may cost."""


def test_a_task_that_might_exceed_the_budget_is_refused_and_a_hit_is_not(cli: Any, api: Any) -> None:
    cli("run", "reviewer", "x", "--max-usd", FOR_NONE).assert_refused("budget of $0.001", "raise max_usd", code=3)
    assert api.requests() == 0
    assert cli("run", "reviewer", "x", "--max-usd", ENOUGH).err.startswith("miss: ")
    assert cli("run", "reviewer", "x", "--max-usd", FOR_NONE).err.startswith("hit, ")
    assert cli("run", "reviewer", "y", "--max-usd", FOR_NONE, "--max-tokens", "50").code == 0


def test_a_model_without_a_price_is_refused_under_a_budget(cli: Any, api: Any) -> None:
    refused = cli("run", "reviewer", "x", "--model", "a-new-model", "--max-usd", "1")
    refused.assert_refused("price of 'a-new-model'", "section prices", code=3)
    assert api.requests() == 0


def test_an_amount_that_is_none_is_a_mistake_of_the_user(cli: Any) -> None:
    cli("run", "reviewer", "x", "--max-usd", "0").assert_refused("max_usd must be a number above 0")


def test_a_workflow_stops_at_the_budget_and_goes_on_with_more(cli: Any, api: Any, configure: Any) -> None:
    configure({"reviewer": {"file": "agents/reviewer.md"}}, workflows={"twice": ["reviewer", "reviewer"]})
    stopped = cli("workflow", "run", "twice", "x", "--max-usd", "0.0021")
    assert stopped.code == 3
    assert "budget" in stopped.err
    assert api.requests() == 1
    assert cli("workflow", "run", "twice", "x", "--max-usd", ENOUGH).code == 0
    assert api.requests() == 2


def test_the_demo_keeps_to_a_budget(cli: Any) -> None:
    done = cli("demo", "--tasks", "2", "--cache", "memory://", "--max-usd", FOR_NONE, ANTHROPIC_BASE_URL=None)
    assert done.code == 3
    assert "budget" in done.err


def _write_tasks(project: Path, count: int) -> None:
    lines = "".join(f'"task {number}"\n' for number in range(count))
    (project / "tasks.jsonl").write_text(lines, encoding="utf-8")


def _answered(project: Path) -> List[int]:
    lines = (project / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(json.loads(line)["index"] for line in lines)


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_batch_stops_at_the_budget_and_goes_on_with_more(cli: Any, api: Any, project: Path, resume: Any) -> None:
    command = ("map", "reviewer", "tasks.jsonl", "--out", "results.jsonl")
    _write_tasks(project, 30)
    stopped = cli(*command, "--max-usd", "0.0021")
    answered = _answered(project)
    assert stopped.code == 3
    assert 0 < len(answered) < 30
    assert f"{30 - len(answered)} tasks were not asked, the first one because the budget of $0.0021" in stopped.err
    assert "spent of $0.0021" in stopped.err
    assert api.requests() == len(answered)

    done = cli(*command, *resume, "--max-usd", "1")
    assert done.code == 0
    assert _answered(project) == list(range(30))
    assert api.requests() == 30


def test_warming_stops_at_the_budget_and_goes_on_with_more(cli: Any, api: Any, project: Path) -> None:
    _write_tasks(project, 30)
    stopped = cli("cache", "warm", "tasks.jsonl", "--agent", "reviewer", "--max-usd", "0.0021")
    asked = api.requests()
    assert stopped.code == 3
    assert 0 < asked < 30
    assert f"{30 - asked} tasks were not asked, the first one because the budget of $0.0021" in stopped.err
    assert cli("cache", "warm", "tasks.jsonl", "--agent", "reviewer", "--max-usd", "1").code == 0
    assert api.requests() == 30
