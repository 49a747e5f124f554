"""``--deadline`` bounds each task, waiting and retries included."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def slow(api: Any) -> Any:
    api.script({"type": "delay", "seconds": 5, "times": None})
    yield
    api.reset()


def test_a_run_that_takes_too_long_fails_and_says_so(slow: Any, cli: Any) -> None:
    done = cli("run", "reviewer", "Review print().", "--deadline", "0.2")
    assert done.code == 1
    assert done.out == ""
    assert "no result within 0.2 s" in done.err


def test_a_line_that_takes_too_long_is_a_failed_line(slow: Any, cli: Any) -> None:
    done = cli("map", "reviewer", "-", "--deadline", "0.2", stdin=b'"one"\n"two"\n')
    assert done.code == 1
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["success"] for row in rows] == [False, False]
    assert all("no result within 0.2 s" in row["errors"][0] for row in rows)


def test_a_deadline_that_is_none_is_bad_usage(cli: Any) -> None:
    done = cli("run", "reviewer", "Review print().", "--deadline", "0")
    assert done.code == 2
    assert "deadline_seconds" in done.err
