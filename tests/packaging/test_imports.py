"""What is imported only when it is needed: nobody waits for the SDK or for cryptography to read a help text."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Set

import pytest

import claude_force_cache

HEAVY = {
    "anthropic",
    "anyio",
    "asyncio",
    "cryptography",
    "diskcache",
    "httpx",
    "httpx2",
    "importlib.metadata",
    "pluggy",
    "pydantic",
    "pymemcache",
    "redis",
    "sqlite3",
    "ssl",
    "zstandard",
}
HELP = """
import contextlib, io
from claude_force_orchestrator.cli import main
sys.argv = ["claude-force", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main()
assert "Usage" in said.getvalue()
"""


def imported_by(code: str) -> Set[str]:
    """Return the heavy modules that a fresh interpreter has imported after ``code``."""
    program = f"import json, sys\n{code}\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    return HEAVY & set(json.loads(run.stdout))


@pytest.mark.parametrize(
    "code", ["import claude_force_cache", "import claude_force_cache, claude_force_orchestrator", HELP], ids=range(3)
)
def test_what_only_looks_waits_for_nothing_heavy(code: str) -> None:
    assert imported_by(code) == set()


def test_opening_a_cache_imports_neither_the_sdk_nor_another_stores_client() -> None:
    code = "from claude_force_cache import open_cache; open_cache('memory://')"
    found = imported_by(code)
    assert "cryptography" in found
    assert not found & {"anthropic", "diskcache", "httpx", "httpx2", "pydantic", "pymemcache", "redis", "sqlite3"}


def test_every_public_name_of_the_core_is_found_and_listed() -> None:
    assert set(claude_force_cache.__all__) <= set(dir(claude_force_cache))
    for name in claude_force_cache.__all__:
        assert getattr(claude_force_cache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = claude_force_cache.Nobody
