"""The targets of ``make fuzz``, briefly and with the same inputs each time."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from reliability.fuzz import mutated
from reliability.fuzz_targets import TARGETS

FEW = {"source": 150, "memcached": 300, "project": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_made_up_fails_as_declared_or_not_at_all(name: str) -> None:
    target, source = TARGETS[name](), random.Random(name)
    for seed in target.seeds:
        target.check(seed)
    for _ in range(FEW.get(name, 1000)):
        target.check(mutated(target, source))


def test_a_finding_fails_the_run_and_its_input_is_kept(tmp_path: Path) -> None:
    broken = tmp_path / "fuzzed.py"
    broken.write_text(
        "import sys\n"
        "from reliability import fuzz, fuzz_targets\n"
        "def check(data):\n"
        "    assert b'needle' not in data\n"
        "fuzz_targets.TARGETS['json'] = lambda: fuzz_targets.Target(check, [b'hay needle hay'])\n"
        "sys.exit(fuzz._run_plain('json', 5, 1))\n"
    )
    done = subprocess.run([sys.executable, str(broken)], cwd=str(tmp_path), capture_output=True, check=False)
    assert done.returncode == 1
    assert b"AssertionError" in done.stderr
    assert [path.read_bytes() for path in tmp_path.glob("crash-json-*")] == [b"hay needle hay"]


def test_the_command_tells_what_it_did(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reliability.fuzz", "manifest", "forge-hmac", "--runs", "300", "--plain"]
    done = subprocess.run(
        [*command, "--seed", "1", "--findings", str(tmp_path)],
        cwd=str(Path(__file__).parents[2]),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[-1] == "600 inputs, 0 findings"
