"""What the distribution says of itself agrees with what it does."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

from claude_force_cache import load_backend

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = [f"3.{minor}" for minor in range(8, 14)]


@pytest.mark.parametrize("name", ["memory", "disk", "redis", "memcached"])
def test_the_remedy_for_a_missing_client_is_an_extra_that_brings_it(name: str) -> None:
    plugin = load_backend(name)
    if plugin.client is None:
        assert plugin.install is None
        return
    assert plugin.install == f"pip install 'claude-force-cache[{name}]'"
    needed = [line for line in requires("claude-force-cache") or () if f"extra == '{name}'" in line.replace('"', "'")]
    assert [re.split(r"[^\w-]", line)[0] for line in needed] == [plugin.client]


def test_the_base_installation_brings_no_client_and_no_sdk() -> None:
    base = {re.split(r"[^\w-]", line)[0] for line in requires("claude-force-cache") or () if "extra ==" not in line}
    assert base == {"anyio", "cryptography", "pluggy", "typing-extensions", "zstandard"}


def test_every_version_that_is_promised_is_tested_and_no_other() -> None:
    classifiers = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    matrix = re.search(r"python: \[(.+)\]", workflow)
    assert classifiers == VERSIONS
    assert matrix is not None
    assert matrix.group(1) == ", ".join(f'"{version}"' for version in VERSIONS)


def test_the_reference_holds_nothing_of_the_machine_that_makes_it() -> None:
    program = "from generate_reference import pages; print('\\n'.join(pages().values()))"
    made = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "scripts",
        env={**os.environ, "A_VARIABLE_OF_MINE": "a value of mine"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert "environ: Mapping" in made
    for trace in ("A_VARIABLE_OF_MINE", "a value of mine", str(ROOT)):
        assert trace not in made
