"""The experiment with processes that are killed, briefly. In a process of its own, since it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("backend", "rounds"), [("disk", 12), ("redis", 8), ("memcached", 6)])
def test_what_is_left_by_processes_that_were_killed_is_whole_and_accounted_for(backend: str, rounds: int) -> None:
    command = [sys.executable, "-m", "reliability.crash", "--backend", backend, "--rounds", str(rounds)]
    done = subprocess.run(
        command, cwd=str(ROOT), timeout=100, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout.decode()
    assert b"no problem" in done.stdout
