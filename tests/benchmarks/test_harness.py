"""A quick run of one case works from the command line, and the report judges what was found by the limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from benchmarks.bench import Bench, Case
from benchmarks.measuring import Section
from benchmarks.report import as_markdown, write
from benchmarks.targets import LINES, Target

ROOT = Path(__file__).resolve().parents[2]
RUN: Dict[str, Any] = {
    "mode": "quick",
    "begun": "2026-01-01 00:00 UTC",
    "seconds": 1.0,
    "load_before": 0.0,
    "load_after": 0.0,
    "failed": ["peers: RuntimeError: a reason"],
    "machine": {"processor": "one", "cores": 2, "system": "a", "python": "b", "libraries": {}, "servers": {}},
}


async def _never(bench: Bench) -> Section:
    raise AssertionError


@pytest.mark.timeout(600)  # it starts servers and programs, with the machine to itself or not
def test_a_quick_run_writes_its_figures_and_the_same_report_that_it_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "flights", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=str(ROOT), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    table = json.loads((tmp_path / "flights.json").read_text(encoding="utf-8"))
    page = (tmp_path / "flights.md").read_text(encoding="utf-8")
    assert run.stdout.decode().strip() == page.strip()
    assert table["mode"] == "quick"
    assert table["failed"] == []
    names = [row["name"] for row in table["cases"]["flights"]["rows"]]
    assert {name.split(",")[0] for name in names} == {
        "floor: 200 tasks await one sleep of 100 ms",
        "memory",
        "disk",
        "redis",
        "memcached",
    }
    (line,) = table["targets"]
    assert line["line"] == "one call"
    assert all(part["what"] in page for part in line["parts"])
    assert all(part["figure"] == 1 for part in line["parts"] if part["unit"] == "call(s)")
    assert str(ROOT) not in page
    assert str(ROOT) not in (tmp_path / "flights.json").read_text(encoding="utf-8")


def test_a_line_is_met_if_each_of_its_figures_is_and_the_worst_one_is_shown(tmp_path: Path) -> None:
    fast, slow = Target("tier", "fast", 1.0, 2.0, "us"), Target("tier", "slow", 3.0, 2.0, "us")
    apart = Target("redis many", "one", 1.5, 1.5, "times")
    case = Case("any", "A case", _never, 1.0)
    found = {case: Section("About it.", targets=[fast, slow, apart])}
    page = as_markdown(RUN, found)
    (tier,) = [row for row in page.splitlines() if row.startswith("| **tier**")]
    assert "slow: 3.00 us (at most 2)" in tier
    assert "**NOT met** in 1 of 2" in tier
    (many,) = [row for row in page.splitlines() if row.startswith("| **redis many**")]
    assert many.endswith("| met |")
    assert page.count("not measured") == len(LINES) - 2
    assert "Cases that failed: peers: RuntimeError: a reason." in page
    data, _ = write(tmp_path, "latest", RUN, found)
    lines = {line["line"]: line["met"] for line in json.loads(data.read_text(encoding="utf-8"))["targets"]}
    assert lines == {"tier": False, "redis many": True}


def test_a_limit_can_be_the_least_that_a_figure_has_to_be() -> None:
    assert Target("tier", "x", 5.0, 5.0, "times faster", least=True).met
    assert not Target("tier", "x", 4.9, 5.0, "times faster", least=True).met
