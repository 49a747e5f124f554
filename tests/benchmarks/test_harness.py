"""A quick run of one case works from the command line, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_writes_its_figures_and_the_same_report_that_it_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "opening", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=str(ROOT), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    table = json.loads((tmp_path / "latest.json").read_text(encoding="utf-8"))
    page = (tmp_path / "latest.md").read_text(encoding="utf-8")
    assert run.stdout.decode().strip() == page.strip()
    assert table["mode"] == "quick"
    assert table["failed"] == []
    case = table["cases"]["opening"]
    assert [row["name"] for row in case["rows"]] == ["0", "1,000", "50,000"]
    assert all(target["text"] in page for target in case["targets"])
    assert str(ROOT) not in page
    assert str(ROOT) not in (tmp_path / "latest.json").read_text(encoding="utf-8")
